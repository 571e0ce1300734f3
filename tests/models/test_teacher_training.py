import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import CLASSES, TINY, pictures, weights

from data.datasets import LabelledImages
from grafting.recipes import CIFAR10, CIFAR100
from models import checkpoints, records, teacher_training
from models.teacher_recipe import TeacherRecipe, stretched
from models.teacher_training import TeacherTraining, batch_sizes
from models.training_layers import LinearHead, PrototypeHead, add_batchnorm, fold_batchnorm
from models.vgg import BlockwiseVGG, initialize
from utils.errors import BadInput

CPU = torch.device("cpu")


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


def test_published_recipe_has_no_batchnorm_in_its_blocks(dataset, tmp_path):
    recipe = CIFAR10.teachers["published"]
    model = TeacherTraining(dataset, TINY, recipe, 0, CPU, tmp_path / "r", lambda line: None).model
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert not model.heads


def test_quick_recipe_has_two_heads_in_training(dataset, tmp_path):
    model = TeacherTraining(dataset, TINY, CIFAR10.teachers["quick"], 0, CPU, tmp_path / "r", lambda line: None).model
    assert [type(head) for head in model.heads] == [LinearHead, PrototypeHead]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])
    logits, loss = model(images, labels)
    assert logits.shape == (4, CLASSES) and loss.shape == ()
    features = model.network[:3](images)
    assert loss.item() == pytest.approx(sum(head(features, labels).item() for head in model.heads), rel=1e-3)


def test_prototypes_by_hand():
    head = PrototypeHead(network(), 2.0)  # its features are 8 channels of 4x4 pixels
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


def test_a_teacher_from_another_keeps_its_logits_where_it_is_only_balanced(dataset, tmp_path, teacher):
    source, path = tmp_path / "source.pth", tmp_path / "t.pth"
    checkpoints.write_teacher(teacher, source)
    before = source.read_bytes()
    recipe = replace(CIFAR10.teachers["further"], epochs=0)
    teacher_training.train_teacher(dataset, source, recipe, 0, CPU, path, lambda line: None)
    balanced = checkpoints.read_teacher(path, CLASSES).eval()
    images = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(balanced(images), teacher(images))
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["balanced_by"] != 1 and record["teacher_from_sha256"] == checkpoints.weights_sha256(teacher)
    assert not torch.equal(balanced.features[2][0].weight, teacher.features[2][0].weight)
    assert source.read_bytes() == before


def test_a_teacher_is_trained_further(dataset, tmp_path, teacher):
    source = tmp_path / "source.pth"
    checkpoints.write_teacher(teacher, source)
    recipe = replace(CIFAR10.teachers["further"], epochs=2, batch=4)
    teacher_training.train_teacher(dataset, source, recipe, 0, CPU, tmp_path / "t.pth", lambda line: None)
    trained = checkpoints.read_teacher(tmp_path / "t.pth", CLASSES)
    assert trained.architecture == TINY
    assert not torch.equal(trained.features[0][0].weight, teacher.features[0][0].weight)
    (tmp_path / "link.pth").symlink_to(source)
    for same in (source, tmp_path / "link.pth"):
        with pytest.raises(BadInput, match="--teacher is the same file"):
            teacher_training.train_teacher(dataset, source, recipe, 0, CPU, same, lambda line: None, fresh=True)


@pytest.mark.parametrize(
    ("recipe", "epoch", "rate"),
    [
        (CIFAR10.teachers["published"], 0.5, 0.05),
        (CIFAR10.teachers["published"], 29.9, 0.05),
        (CIFAR10.teachers["published"], 30, 0.05),  # the last step of epoch 30
        (CIFAR10.teachers["published"], 30.01, 0.025),
        (CIFAR10.teachers["published"], 299, 0.05 / 512),
        (stretched(CIFAR10.teachers["published"], 10), 1.01, 0.025),
        (stretched(CIFAR10.teachers["published"], 2), 0.1, 0.05),
        (stretched(CIFAR10.teachers["published"], 2), 0.3, 0.025),
        (CIFAR100.teachers["published"], 0.5, 0.005),
        (CIFAR100.teachers["published"], 59.9, 0.01),
        (CIFAR100.teachers["published"], 60, 0.01),
        (CIFAR100.teachers["published"], 60.01, 0.002),
        (CIFAR100.teachers["published"], 120.01, 0.0004),
        (CIFAR100.teachers["published"], 180, 0.0004),
        (CIFAR100.teachers["published"], 180.01, 0.00008),
        (stretched(CIFAR10.teachers["quick"], 10), 2, CIFAR10.teachers["quick"].lr),
        (stretched(CIFAR10.teachers["quick"], 10), 6, CIFAR10.teachers["quick"].lr / 2),
        (stretched(CIFAR10.teachers["quick"], 10), 10, 0),
    ],
)
def test_learning_rates(recipe, epoch, rate):
    assert recipe.rate(epoch) == pytest.approx(rate)


def test_published_recipes_are_the_public_ones():
    ten, hundred = CIFAR10.teachers["published"], CIFAR100.teachers["published"]
    for recipe, nesterov, epochs in ((ten, False, 300), (hundred, True, 200)):
        assert (recipe.momentum, recipe.weight_decay, recipe.batch) == (0.9, 5e-4, 128)
        assert (recipe.nesterov, recipe.epochs) == (nesterov, epochs)


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("kind", ["published", "quick", "further"])
def test_an_interrupted_training_ends_with_the_same_bits(dataset, tmp_path, kind):
    recipe = replace(CIFAR10.teachers[kind], epochs=3, batch=4)

    def train(name, report=lambda line: None):
        path = tmp_path / f"{name}.pth"
        teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, path, report)
        return weights(path)

    def cut_after_two(line):
        if line.startswith("epoch 2"):
            raise PowerCut

    undisturbed = train("undisturbed")
    with pytest.raises(PowerCut):
        train("cut", cut_after_two)
    lines = []
    assert train("cut", lines.append) == undisturbed
    assert "resuming after epoch 2" in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "cut.json", "cut.pth", "undisturbed.json", "undisturbed.pth",
    ]  # fmt: skip


@pytest.mark.parametrize("write", ["write_teacher", "announce"])
def test_an_interruption_at_the_end_loses_nothing(dataset, tmp_path, monkeypatch, write):
    """Just behind the teacher's file, or behind the announcement of its record."""
    recipe, path = replace(CIFAR10.teachers["quick"], epochs=2), tmp_path / "t.pth"
    module = checkpoints if write == "write_teacher" else records
    original = getattr(module, write)

    def cut(*arguments):
        original(*arguments)
        raise PowerCut

    monkeypatch.setattr(module, write, cut)
    with pytest.raises(PowerCut):
        teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, path, lambda line: None)
    monkeypatch.setattr(module, write, original)
    teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, path, lambda line: None)
    assert records.of(path)["recipe"]["epochs"] == 2 and not (tmp_path / "t.resume.pt").exists()
    with pytest.raises(BadInput, match="a teacher exists already"):
        teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, path, lambda line: None)


def test_a_training_is_not_continued_on_other_images(dataset, tmp_path):
    """As when pictures of a folder have changed."""
    recipe, resume_file = replace(CIFAR10.teachers["quick"], epochs=1), tmp_path / "t.resume.pt"
    TeacherTraining(dataset, TINY, recipe, 0, CPU, resume_file, lambda line: None).run()
    train = dataset.train()
    others = LabelledImages(train.images, train.labels[::-1].copy())
    for changed in ({"train": lambda: others}, {"class_names": lambda: ("b", "a", "c")}):
        with pytest.raises(BadInput, match="with other settings"):
            TeacherTraining(replace(dataset, **changed), TINY, recipe, 0, CPU, resume_file, lambda line: None).run()


def test_the_record_says_how_the_teacher_was_made(dataset, tmp_path):
    recipe = replace(CIFAR10.teachers["quick"], epochs=2)
    accuracy = teacher_training.train_teacher(dataset, TINY, recipe, 5, CPU, tmp_path / "t.pth", lambda line: None)
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["test_accuracy"] == accuracy and record["seed"] == 5 and record["dataset"] == "Tiny"
    assert record["recipe"]["epochs"] == len(record["epochs"]) == 2
    assert {*record["epochs"][0]} == {"loss", "training_accuracy", "test_accuracy", "learning_rate"}
    assert record["normalization"] == {"mean": [0.5, 0.4, 0.6], "std": [0.2, 0.25, 0.3]} and record["image_size"] == 32
    assert checkpoints.read_teacher(tmp_path / "t.pth", CLASSES).architecture == TINY


def test_what_is_measured_is_told_after_every_epoch_also_what_was_before_an_interruption(dataset, tmp_path):
    recipe, told = replace(CIFAR10.teachers["published"], epochs=3), []

    def tell(epochs):
        told.append([dict(epoch) for epoch in epochs])
        if len(told) == 2:
            raise PowerCut

    def train(after_epoch):
        teacher_training.train_teacher(
            dataset, TINY, recipe, 0, CPU, tmp_path / "t.pth", lambda _: None, False, after_epoch
        )

    with pytest.raises(PowerCut):
        train(tell)
    train(tell)
    assert [len(epochs) for epochs in told] == [1, 2, 2, 3] and told[1] == told[2] == told[3][:2]
    assert told[3] == json.loads((tmp_path / "t.json").read_text())["epochs"]
    assert told[3][0]["learning_rate"] == recipe.rate(1)


def test_balancing_looks_at_all_parts_of_the_training_set(dataset, tmp_path, monkeypatch):
    """Pictures in folders come class by class."""
    seen = []
    monkeypatch.setattr(teacher_training, "BALANCING_IMAGES", 7)
    monkeypatch.setattr(
        teacher_training, "balance", lambda network, batches: seen.extend(torch.cat(list(batches))) or 1.0
    )
    recipe = replace(CIFAR10.teachers["quick"], epochs=1)
    teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, tmp_path / "t.pth", lambda line: None)
    expected = dataset.normalization(torch.from_numpy(dataset.train().images[::2].copy()))
    assert torch.equal(torch.stack(seen), expected)


def test_a_training_that_diverges_writes_no_teacher(dataset, tmp_path):
    recipe = replace(CIFAR10.teachers["published"], epochs=2, lr=float("inf"))
    with pytest.raises(BadInput, match="the loss is not finite in epoch"):
        teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, tmp_path / "t.pth", lambda line: None)
    assert not (tmp_path / "t.pth").exists()


def test_a_teacher_whose_last_step_overflows_is_not_written(dataset, tmp_path, monkeypatch):
    """No loss shows it."""
    train = TeacherTraining._train

    def overflowing(training, epoch, *rest):
        figures = train(training, epoch, *rest)
        if epoch == 1:
            next(training.model.network.parameters()).data.mul_(float("inf"))
        return figures

    monkeypatch.setattr(TeacherTraining, "_train", overflowing)
    recipe = replace(CIFAR10.teachers["quick"], epochs=2)
    with pytest.raises(BadInput, match="a weight is not finite after the last epoch; try another --seed"):
        teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, tmp_path / "t.pth", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_an_unfinished_training_of_other_settings_is_refused(dataset, tmp_path):
    recipe = replace(CIFAR10.teachers["quick"], epochs=2)
    resume_file = tmp_path / "t.resume.pt"
    TeacherTraining(dataset, TINY, recipe, 0, CPU, resume_file, lambda line: None).run()
    with pytest.raises(BadInput, match="unfinished teacher training with other settings"):
        TeacherTraining(dataset, TINY, recipe, 1, CPU, resume_file, lambda line: None).run()


@pytest.mark.parametrize(
    ("images", "sizes"),
    [(1, [1]), (3, [3]), (5, [5]), (6, [4, 2]), (8, [4, 4]), (9, [4, 5]), (13, [4, 4, 5])],
)
def test_no_batch_after_the_first_is_a_single_image(images, sizes):
    assert batch_sizes(images, 4) == sizes


def of_size(dataset, images):
    return replace(dataset, train=lambda: LabelledImages(pictures(images), np.arange(images) % CLASSES))


@pytest.mark.parametrize("kind", ["published", "quick"])
def test_a_last_batch_of_one_image_is_trained_on(dataset, tmp_path, kind):
    recipe = replace(CIFAR10.teachers[kind], epochs=2, batch=4)
    teacher_training.train_teacher(of_size(dataset, 9), TINY, recipe, 0, CPU, tmp_path / "t.pth", lambda line: None)
    assert (tmp_path / "t.pth").exists()


@pytest.mark.parametrize(
    ("images", "progress"),
    [(8, [0.5, 1, 1.5, 2]), (9, [4 / 9, 1, 13 / 9, 2]), (10, [0.4, 0.8, 1, 1.4, 1.8, 2]), (3, [1, 2])],
)
def test_learning_rates_follow_the_images_seen(dataset, tmp_path, monkeypatch, images, progress):
    recipe = replace(CIFAR10.teachers["published"], epochs=2, batch=4)
    asked = []
    monkeypatch.setattr(TeacherRecipe, "rate", lambda self, epoch: asked.append(epoch) or 0.01)
    TeacherTraining(of_size(dataset, images), TINY, recipe, 0, CPU, tmp_path / "r", lambda line: None).run()
    assert asked == pytest.approx(progress)


def test_a_single_training_image_is_refused(dataset, tmp_path):
    recipe = replace(CIFAR10.teachers["quick"], epochs=1)
    with pytest.raises(BadInput, match="--dataset Tiny: has a single training image"):
        teacher_training.train_teacher(of_size(dataset, 1), TINY, recipe, 0, CPU, tmp_path / "t.pth", lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_teacher_is_replaced_only_with_fresh(dataset, tmp_path):
    path, recipe = tmp_path / "t.pth", replace(CIFAR10.teachers["published"], epochs=1)
    path.write_bytes(b"a teacher")

    def unread():
        raise AssertionError("the data set is read before the check")

    with pytest.raises(BadInput) as refusal:
        unreadable = replace(dataset, train=unread, test=unread)
        teacher_training.train_teacher(unreadable, TINY, recipe, 0, CPU, path, lambda line: None, fresh=False)
    assert (
        str(refusal.value) == f"{path}: a teacher exists already; --fresh trains it again, another --teacher keeps both"
    )
    assert path.read_bytes() == b"a teacher" and list(tmp_path.iterdir()) == [path]
    teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, path, lambda line: None, fresh=True)
    assert checkpoints.read_teacher(path, CLASSES).architecture == TINY


@pytest.mark.parametrize("name", ["t.json", "t", ".", "t.pth/below.pth"])
def test_a_name_that_no_teacher_can_have_is_refused_before_any_work(dataset, tmp_path, name):
    (tmp_path / "t.pth").write_bytes(b"a teacher")

    def unread():
        raise AssertionError("the data set is read before the check")

    with pytest.raises(BadInput) as refusal:
        unreadable, recipe = replace(dataset, train=unread, test=unread), CIFAR10.teachers["quick"]
        teacher_training.train_teacher(unreadable, TINY, recipe, 0, CPU, tmp_path / name, lambda line: None, fresh=True)
    assert "\n" not in str(refusal.value) and [p.name for p in tmp_path.iterdir()] == ["t.pth"]


def test_an_interrupted_fresh_training_is_resumed(dataset, tmp_path):
    path, recipe, lines = tmp_path / "t.pth", replace(CIFAR10.teachers["published"], epochs=2), []
    path.write_bytes(b"a teacher")

    def interrupt(line):
        if line.startswith("epoch 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, path, interrupt, fresh=True)
    assert path.read_bytes() == b"a teacher"
    teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, path, lines.append, fresh=True)
    assert "resuming after epoch 1" in lines[0] and path.read_bytes() != b"a teacher"


def test_what_killed_writes_have_left_is_removed(dataset, tmp_path):
    """Also where the name of a teacher's file is a pattern of file names."""
    path, recipe = tmp_path / "pets [v2].pth", replace(CIFAR10.teachers["published"], epochs=1)
    for name in (path.name, "pets [v2].json", "pets [v2].resume.pt"):
        (tmp_path / f".{name}.0123abcd.tmp").write_text("torn")
    teacher_training.train_teacher(dataset, TINY, recipe, 0, CPU, path, lambda line: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pets [v2].json", "pets [v2].pth"]


def test_a_new_network_with_few_steps_is_said(dataset, teacher, tmp_path):
    """Two epochs of a step each; a trained network needs few."""
    recipe = replace(CIFAR10.teachers["quick"], epochs=2)
    checkpoints.write_teacher(teacher, tmp_path / "teacher.pth")
    lines = []
    for start in (TINY, tmp_path / "teacher.pth"):
        TeacherTraining(dataset, start, recipe, 0, CPU, tmp_path / f"{len(lines)}", lines.append).run()
    announced = [line.partition("steps")[2] for line in lines if line.startswith("training a teacher")]
    assert announced == ["; few for a new network: --teacher_epochs gives more", ""]
