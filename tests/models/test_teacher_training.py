import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import CLASSES, TINY, PowerCut, dataset_not_in_memory, overflowing, pictures, small_job, weights

from data.datasets import LabelledImages
from experiments import teachers
from experiments.teachers import like_guessing
from grafting.recipes import CIFAR10, CIFAR100, SHAPES10
from models import checkpoints, records, teacher_training
from models.networks import batch_sizes, initialize, vgg
from models.teacher_recipe import TeacherRecipe
from models.teacher_training import TeacherTraining
from models.training_layers import (
    LinearHead,
    PrototypeHead,
    TeacherWithTrainingLayers,
    add_batchnorm,
    fold_batchnorm,
)
from models.vgg import BlockwiseVGG, cut
from utils.errors import BadInput

CPU = torch.device("cpu")
TEN, HUNDRED = CIFAR10.teachers, CIFAR100.teachers


def test_training_images_that_do_not_fit_into_memory_give_the_same_teacher(dataset, tmp_path):
    found = []
    for name, images in (("in", dataset), ("not", dataset_not_in_memory())):
        accuracy = train(images, tmp_path / f"{name}.pth", recipe(epochs=2, batch=5))
        record = json.loads((tmp_path / f"{name}.json").read_text())
        found.append((accuracy, weights(tmp_path / f"{name}.pth"), record["epochs"], record["train_sha256"]))
    assert found[0] == found[1]


def power_cut(*_):
    raise PowerCut


def recipe(kind="quick", **changed):
    return replace(TEN[kind], **changed)


def training(dataset, path, its_recipe, start=None, seed=0):
    return TeacherTraining(dataset, vgg(TINY), start, its_recipe, seed, CPU, path)


def train(dataset, path, its_recipe, report=lambda line: None, after_epoch=lambda epochs: None, **options):
    return training(dataset, path, its_recipe, **options).run(report, after_epoch)


def of_size(dataset, images):
    return replace(dataset, train=lambda: LabelledImages(pictures(images), np.arange(images) % CLASSES))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.pth"


def network():
    return initialize(BlockwiseVGG(TINY, CLASSES), torch.Generator().manual_seed(0))


def test_folding_leaves_the_plain_layout_and_the_same_outputs():
    random = torch.Generator().manual_seed(0)
    normed = add_batchnorm(network())
    normed.train()
    for _ in range(3):
        normed(torch.randn(32, 3, 32, 32, generator=random) * 3 + 1)
    for module in normed.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.5, generator=random)
            torch.nn.init.normal_(module.bias, generator=random)
    images = torch.randn(8, 3, 32, 32, generator=random)
    expected = normed.eval()(images)
    folded = fold_batchnorm(copy.deepcopy(normed))
    assert list(folded.state_dict()) == list(network().state_dict())
    assert torch.allclose(folded(images), expected, rtol=1e-4, atol=1e-5)


def test_only_the_quick_recipe_has_batchnorm_in_blocks_and_two_heads_in_training(dataset, path):
    published, model = (training(dataset, path, recipe(kind)).model for kind in ("published", "quick"))
    assert not published.heads and not any(isinstance(m, torch.nn.BatchNorm2d) for m in published.modules())
    assert [type(head) for head in model.heads] == [LinearHead, PrototypeHead]
    images, labels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    logits, loss = model(images, labels)
    assert logits.shape == (4, CLASSES) and loss.shape == ()
    features = cut(model.network)[:3](images)
    assert loss.item() == pytest.approx(sum(head(features, labels).item() for head in model.heads), rel=1e-3)


def test_heads_fit_other_image_sizes():
    model = TeacherWithTrainingLayers(network(), recipe("quick"), torch.Generator().manual_seed(0), 48)
    assert model(torch.randn(4, 3, 48, 48), torch.tensor([0, 1, 2, 0]))[0].shape == (4, CLASSES)


def test_prototypes_by_hand():
    head = PrototypeHead(network(), 2.0, 32)  # its features are 8 channels of 4x4 pixels
    features = torch.zeros(3, 8, 4, 4)
    features.flatten(1)[[0, 1, 2], [0, 1, 5]] = torch.tensor([3.0, 4.0, 7.0])
    features.requires_grad_(True)
    loss = head(features, torch.tensor([0, 0, 2]))
    means = head.means.clone()
    assert means[0, :2].tolist() == [0.5, 0.5] and means[2, 5] == 1 and not means[1].any()
    half = 10 / 2**0.5  # cosine 1/sqrt(2) to the mean of class 0, 0 to the others
    expected = [math.log(math.exp(half) + 2) - half] * 2 + [math.log(math.exp(10) + 2) - 10]
    assert loss.item() == pytest.approx(2 * sum(expected) / 3, rel=1e-3)
    loss.backward()
    assert features.grad[0].abs().max() > 0
    head(features.detach()[2:], torch.tensor([0]))
    assert head.means[0, [0, 1, 5]].tolist() == pytest.approx([0.475, 0.475, 0.05])
    assert torch.equal(head.means[1:], means[1:])


def test_a_teacher_from_another_keeps_its_logits_where_it_is_only_balanced(dataset, tmp_path, path, teacher):
    source = tmp_path / "source.pth"
    checkpoints.write_network(teacher, source)
    before = source.read_bytes()
    train(dataset, path, recipe("further", epochs=0), start=source)
    balanced = checkpoints.read_teacher(path, CLASSES).eval()
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(balanced(images), teacher(images))
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["balanced_by"] != 1 and record["teacher_from_sha256"] == checkpoints.weights_sha256(teacher)
    assert not torch.equal(balanced.features[2][0].weight, teacher.features[2][0].weight)
    assert source.read_bytes() == before


@pytest.mark.parametrize("epochs", [0, 1])
def test_test_logits_that_are_not_finite_are_refused(dataset, tmp_path, path, teacher, monkeypatch, epochs):
    """After an epoch whose loss was finite, and of a network that is only balanced."""
    monkeypatch.setattr(TeacherTraining, "_train_epoch", lambda *_: {"loss": 1.0, "training_accuracy": 50.0})
    checkpoints.write_network(overflowing(teacher), tmp_path / "source.pth")
    with pytest.raises(BadInput, match="a test logit is not finite; try another --seed or --teacher_from"):
        train(dataset, path, recipe("further", epochs=epochs), start=tmp_path / "source.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["source.pth"]


def test_a_teacher_is_trained_further_but_not_in_place(dataset, tmp_path, path, teacher):
    source = tmp_path / "source.pth"
    checkpoints.write_network(teacher, source)
    train(dataset, path, recipe("further", epochs=2, batch=4), start=source)
    trained = checkpoints.read_teacher(path, CLASSES)
    assert trained.architecture == TINY
    assert not torch.equal(trained.features[0][0].weight, teacher.features[0][0].weight)
    (tmp_path / "link.pth").symlink_to(source)
    for same in (source, tmp_path / "link.pth"):
        job = small_job(tmp_path, "--train_teacher", "--teacher", str(same), "--teacher_from", str(source), "--fresh")
        with pytest.raises(BadInput, match="--teacher is the same file"):
            teachers.train(job, None)


@pytest.mark.parametrize(
    ("its_recipe", "epoch", "rate"),
    [
        (TEN["published"], 30, 0.05),  # the last step of epoch 30
        (TEN["published"], 30.01, 0.025),
        (TEN["published"], 299, 0.05 / 512),
        (recipe("published", epochs=10), 1.01, 0.025),
        (recipe("published", epochs=2), 0.3, 0.025),
        (HUNDRED["published"], 0.5, 0.005),
        (HUNDRED["published"], 60.01, 0.002),
        (HUNDRED["published"], 180, 0.0004),
        (HUNDRED["published"], 180.01, 0.00008),
        (recipe(epochs=10), 2, TEN["quick"].lr),
        (recipe(epochs=10), 6, TEN["quick"].lr / 2),
        (recipe(epochs=10), 10, 0),
    ],
)
def test_learning_rates(its_recipe, epoch, rate):
    assert its_recipe.rate(epoch) == pytest.approx(rate)


def test_published_recipes_are_the_public_ones():
    for published, nesterov, epochs in ((TEN["published"], False, 300), (HUNDRED["published"], True, 200)):
        assert (published.momentum, published.weight_decay, published.batch) == (0.9, 5e-4, 128)
        assert (published.nesterov, published.epochs) == (nesterov, epochs)


@pytest.mark.parametrize("kind", ["published", "quick", "further"])
def test_an_interrupted_training_ends_with_the_same_bits_and_tells_every_epoch(dataset, tmp_path, kind):
    its_recipe, lines, told = recipe(kind, epochs=3, batch=4), [], []

    def trained(name, **options):
        train(dataset, tmp_path / f"{name}.pth", its_recipe, **options)
        return weights(tmp_path / f"{name}.pth")

    def tell(epochs):
        told.append([dict(epoch) for epoch in epochs])
        if len(told) == 2:
            raise PowerCut

    undisturbed = trained("undisturbed")
    with pytest.raises(PowerCut):
        trained("cut", after_epoch=tell)
    assert trained("cut", after_epoch=tell, report=lines.append) == undisturbed
    assert "resuming after epoch 2" in lines[0]
    assert {p.name for p in tmp_path.iterdir()} == {"cut.json", "cut.pth", "undisturbed.json", "undisturbed.pth"}
    assert [len(epochs) for epochs in told] == [1, 2, 2, 3] and told[1] == told[2] == told[3][:2]
    assert told[3] == json.loads((tmp_path / "cut.json").read_text())["epochs"]
    assert told[3][0]["learning_rate"] == its_recipe.rate(1)


@pytest.mark.parametrize(("module", "write"), [(checkpoints, "write_network"), (records, "announce")])
def test_an_interruption_at_the_end_loses_nothing(dataset, path, monkeypatch, module, write):
    """Just behind the teacher's file, or behind the announcement of its record."""
    original, quick = getattr(module, write), recipe(epochs=2)
    monkeypatch.setattr(module, write, lambda *arguments: power_cut(original(*arguments)))
    with pytest.raises(PowerCut):
        train(dataset, path, quick)
    monkeypatch.setattr(module, write, original)
    train(dataset, path, quick)
    assert records.of(path)["recipe"]["epochs"] == 2 and not path.with_suffix(".resume.pt").exists()


def test_a_training_is_not_continued_with_other_settings_or_images(dataset, path):
    """As when pictures of a folder have changed."""
    with pytest.raises(PowerCut):
        train(dataset, path, recipe(epochs=2), after_epoch=power_cut)
    images = dataset.train()
    others = LabelledImages(images.images, images.labels[::-1].copy())
    for changed, seed in (({"train": lambda: others}, 0), ({"class_names": lambda: ("b", "a", "c")}, 0), ({}, 1)):
        with pytest.raises(BadInput, match="unfinished teacher training with other settings"):
            train(replace(dataset, **changed), path, recipe(epochs=2), seed=seed)


def test_the_record_says_how_the_teacher_was_made(dataset, path):
    accuracy = train(dataset, path, recipe(epochs=2), seed=5)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["test_accuracy"] == accuracy and record["seed"] == 5 and record["dataset"] == "Tiny"
    assert record["recipe"]["epochs"] == len(record["epochs"]) == 2
    assert {*record["epochs"][0]} == {"loss", "training_accuracy", "test_accuracy", "learning_rate"}
    assert record["normalization"] == {"mean": [0.5, 0.4, 0.6], "std": [0.2, 0.25, 0.3]} and record["image_size"] == 32
    assert checkpoints.read_teacher(path, CLASSES).architecture == TINY


@pytest.mark.parametrize(
    ("lr", "fault"), [(math.inf, "the loss is not finite in epoch"), (0.01, "a weight is not finite after the last")]
)
def test_a_training_that_diverges_writes_no_teacher(dataset, path, monkeypatch, lr, fault):
    def overflowing(network):  # in the last step, so no loss shows it
        next(network.parameters()).data.fill_(math.inf)
        return network

    monkeypatch.setattr(teacher_training, "fold_batchnorm", overflowing)
    with pytest.raises(BadInput, match=f"{fault}.*; try another --seed"):
        train(dataset, path, recipe("quick", epochs=2, lr=lr, batch=4))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    ("images", "sizes"),
    [(1, [1]), (3, [3]), (5, [5]), (6, [4, 2]), (8, [4, 4]), (9, [4, 5]), (13, [4, 4, 5])],
)
def test_no_batch_after_the_first_is_a_single_image(images, sizes):
    assert batch_sizes(images, 4, joins_last=True) == sizes


@pytest.mark.parametrize(
    ("images", "progress"),
    [(8, [0.5, 1, 1.5, 2]), (9, [4 / 9, 1, 13 / 9, 2]), (10, [0.4, 0.8, 1, 1.4, 1.8, 2]), (3, [1, 2])],
)
def test_learning_rates_follow_the_images_seen(dataset, path, monkeypatch, images, progress):
    asked = []
    monkeypatch.setattr(TeacherRecipe, "rate", lambda self, epoch: asked.append(epoch) or 0.01)
    train(of_size(dataset, images), path, recipe(epochs=2, batch=4))
    assert asked == pytest.approx(progress)


def test_a_single_training_image_is_refused(dataset, tmp_path, path):
    with pytest.raises(BadInput, match="--dataset Tiny: has a single training image"):
        train(of_size(dataset, 1), path, recipe(epochs=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["t.pth", "t.json", "t", ".", "t.pth/below.pth"])
def test_a_finished_teacher_and_names_that_no_teacher_can_have_are_refused_before_any_work(path, name, monkeypatch):
    """Only --fresh replaces a teacher."""
    path.write_bytes(b"a teacher")
    monkeypatch.setattr(teachers, "TeacherTraining", None)  # nothing is read before the check
    fresh = ["--fresh"] if name != path.name else []
    with pytest.raises(BadInput) as refusal:
        teachers.train(small_job(path.parent, "--train_teacher", "--teacher", str(path.parent / name), *fresh), "quick")
    said = f"{path}: a teacher exists already; --fresh trains it again, another --teacher keeps both"
    assert (str(refusal.value) == said) == (name == path.name) and "\n" not in str(refusal.value)
    assert path.read_bytes() == b"a teacher"


def test_a_fresh_training_replaces_the_teacher_at_its_end_and_is_resumed(dataset, path):
    published, lines = recipe("published", epochs=2), []
    path.write_bytes(b"a teacher")
    with pytest.raises(PowerCut):
        train(dataset, path, published, after_epoch=power_cut)
    assert path.read_bytes() == b"a teacher"
    train(dataset, path, published, report=lines.append)
    assert "resuming after epoch 1" in lines[0] and checkpoints.read_teacher(path, CLASSES).architecture == TINY


def test_what_killed_writes_have_left_is_removed(dataset, tmp_path):
    """Also where the name of a teacher's file is a pattern of file names."""
    path = tmp_path / "pets [v2].pth"
    for name in (path.name, "pets [v2].json", "pets [v2].resume.pt"):
        (tmp_path / f".{name}.0123abcd.tmp").write_text("torn")
    train(dataset, path, recipe("published", epochs=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pets [v2].json", "pets [v2].pth"]


@pytest.mark.parametrize(
    ("kind", "images", "batch", "passes"),
    [
        ("quick", 50_000, 128, 1),
        ("quick", 5000, 128, 1),  # 22 epochs of 40 steps
        ("quick", 2000, 64, 1),  # of 32 steps
        ("quick", 300, 16, 2),
        ("quick", 90, 16, 5),
        ("quick", 30, 16, 13),
        ("quick", 2, 16, 182),
        ("published", 90, 64, 1),  # 300 epochs of 2 steps
    ],
)
def test_of_few_images_a_new_teacher_has_500_steps(kind, images, batch, passes):
    few = TEN[kind].of_few(images)
    assert few == replace(TEN[kind], batch=batch, lr=pytest.approx(TEN[kind].lr * batch / 128), passes=passes)
    assert few.epochs * len(batch_sizes(passes * images, batch, True)) >= 500


def test_the_recipes_of_large_data_sets_and_what_is_recorded_of_them_are_unchanged():
    for recipes_of, images in ((TEN, 50_000), (HUNDRED, 50_000), (SHAPES10.teachers, 4000)):
        for one in recipes_of.values():
            if one.name != "further":
                assert one.of_few(images) == one and "passes" not in one.content
    assert recipe(passes=3).content == {**TEN["quick"].content, "passes": 3}


def test_an_epoch_shows_every_image_as_often_as_the_recipe_says(dataset, path, monkeypatch):
    shown, original = [], teacher_training.TrainingImages.shown

    def counted(self, image, view):
        shown.extend(zip(image.tolist(), view.tolist(), strict=True))
        return original(self, image, view)

    monkeypatch.setattr(teacher_training.TrainingImages, "shown", counted)
    lines = []
    train(of_size(dataset, 6), path, recipe(epochs=2, batch=4, passes=3), report=lines.append)
    assert "2 epochs of 5 steps, each image 3 times in an epoch" in lines[0]
    assert sorted(image for image, _ in shown[:18]) == sorted([*range(6)] * 3) and len(shown) == 36
    assert len(set(shown)) > 30  # in other views
    assert records.of(path)["recipe"]["passes"] == 3


def test_the_minimum_of_steps_holds_for_new_teachers_only(tmp_path, teacher, monkeypatch):
    """--teacher_epochs counts epochs that are long enough."""
    used = []
    monkeypatch.setattr(teachers, "TeacherTraining", lambda *found: used.append(found[3]) or power_cut())
    checkpoints.write_network(teacher, tmp_path / "teacher.pth")
    new = "--train_teacher", "--teacher", str(tmp_path / "new.pth")
    for flags in (new, (*new, "--teacher_epochs", "7"), (*new, "--teacher_from", str(tmp_path / "teacher.pth"))):
        with pytest.raises(PowerCut):
            teachers.train(small_job(tmp_path, *flags), "quick" if "--teacher_from" not in flags else None)
    assert [(one.epochs, one.batch, one.passes) for one in used] == [(22, 16, 31), (7, 16, 31), (3, 128, 1)]


@pytest.mark.parametrize(
    ("labels", "accuracy", "guesses"),
    [
        ([0, 1, 2] * 50, 33.3, True),
        ([0, 1, 2] * 50, 41.0, True),  # by luck: 33.33 + 2 * 3.85
        ([0, 1, 2] * 50, 41.1, False),
        ([0, 1, 2] * 50, 20.0, True),
        ([0] * 90 + [1] * 10, 90.0, True),
        (list(range(10)) * 1000, 10.7, False),
    ],
)
def test_a_teacher_that_only_guesses(tmp_path, dataset, labels, accuracy, guesses):
    test = LabelledImages(pictures(1), np.asarray(labels))
    job = small_job(tmp_path, "--teacher", "t.pth", dataset=replace(dataset, test=lambda: test))
    fault = like_guessing(accuracy, TEN["quick"], job)
    assert (fault is not None) == guesses
    if guesses:
        assert f"t.pth: test accuracy {accuracy:.2f}% is no better than guessing (" in fault
        assert fault.endswith("train again with --fresh --teacher_epochs 44") and "\n" not in fault
        assert like_guessing(accuracy, TEN["published"], job).endswith("--fresh --teacher_recipe quick")
