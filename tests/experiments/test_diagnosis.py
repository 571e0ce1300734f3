import copy
import shlex
from pathlib import Path

import pytest
import torch
from small import CLASSES, frozen_teacher, overflowing, pictures, small_teacher
from torch.nn import functional

import train_fskd
from experiments.diagnosis import PENALTIES, BlockReport, Diagnosis, Ridge, diagnose, effective_rank
from grafting.inputs import Inputs
from models.logits import LogitsNotFinite


def test_class_means_and_rms_by_hand():
    """The nearest class mean knows the first image of each class, in all its 162 views."""
    teacher, images = frozen_teacher(), pictures(2 * CLASSES, 5)
    found, inputs, views = diagnose(teacher, images), Inputs(teacher, images), torch.arange(162)
    for start in range(1, 6):
        first = [inputs.features(start, torch.full((162,), 2 * c), views) for c in range(CLASSES)]
        means = torch.stack([features.flatten(1).mean(0) for features in first])
        test = torch.cat([features.flatten(1) for features, _ in teacher.test_batches(start)])
        predicted = functional.cosine_similarity(test[:, None], means[None], dim=2).argmax(1)
        report, expected = found.blocks[start - 1], 100 * (predicted == teacher.test_labels).double().mean().item()
        assert (report.block, report.features) == (start - 1, test.shape[1])
        assert report.nearest_mean == pytest.approx(expected)
        assert report.rms == pytest.approx(test.square().mean().sqrt().item(), rel=1e-5)


def labelled_features():
    """Eight vectors of three classes that overlap: (8, 5) in float64, and their labels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    return torch.randn(8, 5, generator=random, dtype=torch.float64) + functional.one_hot(labels, 5), labels


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_the_leave_one_out_error_is_that_of_refits(penalty):
    """Each image is predicted by a regression on the others, centred as all of them."""
    features, labels = labelled_features()
    x, y = features - features.mean(0), functional.one_hot(labels).double()
    y -= y.mean(0)
    expected = 0.0
    for left_out in range(len(x)):
        others = torch.arange(len(x)) != left_out
        a, b = x[others], y[others]
        weight = torch.linalg.solve(a.T @ a + penalty * torch.eye(5), a.T @ b)
        expected += (x[left_out] @ weight - y[left_out]).square().sum().item()
    error, _ = Ridge._solve(x @ x.T, y, torch.tensor(penalty))
    assert error == pytest.approx(expected, rel=1e-9)


def test_the_regression_is_the_one_of_least_leave_one_out_error():
    features, labels = labelled_features()
    x, y = features - features.mean(0), functional.one_hot(labels).double()
    y -= y.mean(0)
    lengths = x.square().sum(1).mean()
    errors = {penalty: Ridge._solve(x @ x.T, y, penalty * lengths)[0] for penalty in PENALTIES}
    chosen = min(errors, key=errors.get)
    assert PENALTIES[0] < chosen < PENALTIES[-1]
    weight = torch.linalg.solve(x.T @ x + chosen * lengths * torch.eye(5), x.T @ y)
    assert torch.allclose(Ridge(features, labels, 3).weight.double(), weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("singular", "rank"), [([5.0] * 4, 4.0), ([2.0], 1.0), ([3.0, 1.0], 4 / 3**0.75)])
def test_effective_rank_by_hand(singular, rank):
    """k equal singular values count as k; shares of 3/4 and 1/4 as exp(3/4 ln 4/3 + 1/4 ln 4)."""
    random = torch.Generator().manual_seed(0)
    left, right = (torch.randn(9, len(singular), generator=random, dtype=torch.float64) for _ in range(2))
    left, right = torch.linalg.qr(left - left.mean(0)).Q, torch.linalg.qr(right).Q
    features = left @ torch.tensor(singular, dtype=torch.float64).diag() @ right.T + 7.0
    assert effective_rank(features) == pytest.approx(rank, rel=1e-4)


def test_a_block_that_gives_the_same_for_all_images():
    """As in a training that has collapsed: guesses, but no fault."""
    network = copy.deepcopy(small_teacher())
    for layer in network.features[2]:
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data.zero_(), layer.bias.data.zero_()
    block = diagnose(frozen_teacher(network), pictures(CLASSES, 7)).blocks[2]
    assert block.rms == 0 and block.rank == 1.0 and 0 <= block.probe <= 100


def test_a_teacher_whose_logits_are_not_finite():
    with pytest.raises(LogitsNotFinite):
        diagnose(frozen_teacher(overflowing(small_teacher())), pictures(CLASSES, 7))


POOR, FOREIGN = "This teacher is poor", "was it trained on these data?"


@pytest.mark.parametrize(
    ("nearest_mean", "beside", "said"),
    [(70.0, "20.00 points below", {POOR}), (88.0, "2.00 points below", set()), (93.1, "3.10 points above", {FOREIGN})],
)
def test_the_text_says_what_to_do_with_a_poor_teacher(nearest_mean, beside, said):
    blocks = tuple(BlockReport(b, 4, 85.0, nearest_mean if b == 2 else 50.0, 0.25, 3.0) for b in range(5))
    inputs, file = ["--dataset", "Folder", "--data_path", "my pictures"], Path("ckpt/mine.pt")
    text = Diagnosis(blocks, 90.0, first=3).text(inputs, file)
    assert text.count("\n|") == 6 and "output of block 2 is the input of B0" in text
    beside = {70.0: "20.00 points below", 88.0: "2.00 points below", 93.1: "3.10 points above"}[nearest_mean]
    assert f"5.00 points below the teacher, the nearest class mean of one image per class {beside} it." in text
    assert {words for words in (POOR, FOREIGN) if words in text} == said
    if said == {POOR}:
        python, program, *flags = shlex.split(text.splitlines()[-1])
        args = train_fskd.arguments(flags)
        assert (python, program, args.train_teacher) == ("python", "train_fskd.py", True)
        assert (args.teacher_from, args.teacher) == (file, Path("ckpt/mine-graftable.pth"))
        assert (args.dataset, args.data_path) == ("Folder", Path("my pictures"))
