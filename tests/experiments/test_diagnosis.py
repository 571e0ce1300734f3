import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import CLASSES, pictures
from torch.nn import functional

from data.datasets import LabelledImages
from data.views import VIEWS
from experiments.diagnosis import PENALTIES, Ridge, diagnose, effective_rank
from experiments.expectation import describe
from grafting.recipes import CIFAR10
from grafting.teacher import FrozenTeacher


@pytest.fixture
def found(teacher, dataset):
    """A diagnosis with two images per class, and what it was made from."""
    frozen, images = FrozenTeacher(teacher, dataset.normalization, dataset.test()), pictures(2 * CLASSES, 5)
    return diagnose(frozen, images), frozen, images


def test_one_image_per_class_by_hand(found, dataset):
    diagnosis, frozen, images = found
    views = frozen.few_shot(images)
    means = [
        views.features(3, torch.full((VIEWS,), 2 * c), torch.arange(VIEWS)).flatten(1).mean(0) for c in range(CLASSES)
    ]
    test = torch.cat([features.flatten(1) for features, _ in frozen.test_batches(3)])
    cosine = functional.cosine_similarity(test[:, None], torch.stack(means)[None], dim=2)
    expected = 100 * np.mean(cosine.argmax(1).numpy() == dataset.test().labels)
    assert diagnosis.blocks[2].one_shot == pytest.approx(expected)


def test_rms_by_hand(found):
    diagnosis, frozen, _ = found
    for start in range(1, 6):
        features = torch.cat([features for features, _ in frozen.test_batches(start)])
        assert diagnosis.blocks[start - 1].rms == pytest.approx(features.square().mean().sqrt().item(), rel=1e-5)


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


def test_images_that_are_the_test_set_are_read_without_a_fault(teacher, dataset):
    """One picture per class, which is also the whole test set: every classifier on early blocks knows it."""
    images = pictures(CLASSES, 7)
    test = LabelledImages(images, np.arange(CLASSES))
    frozen = FrozenTeacher(teacher, dataset.normalization, replace(dataset, test=lambda: test).test())
    assert diagnose(frozen, images).blocks[0].one_shot == 100


def test_the_text_says_what_to_expect(found):
    diagnosis, inputs, file = replace(found[0], classes=100), ["--dataset", "CIFAR10"], Path("mine.pth")
    text, block = diagnosis.text(CIFAR10, inputs, file), diagnosis.blocks[2]
    steps = 17 * 420  # an epoch of 100 images in batches of 6
    assert text.count("\n|") == 6 and f"its RMS is {block.rms:.2f}." in text
    assert text.endswith("\n".join(describe(diagnosis.teacher, block.one_shot, block.rms, steps, inputs, file)))


def test_a_block_that_gives_the_same_for_all_images(teacher, dataset):
    """As in a training that has collapsed: guesses, but no fault."""
    teacher = copy.deepcopy(teacher)
    for layer in teacher.features[2]:
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data.zero_(), layer.bias.data.zero_()
    found = diagnose(FrozenTeacher(teacher, dataset.normalization, dataset.test()), pictures(CLASSES, 7))
    assert found.blocks[2].rms == 0 and found.blocks[2].rank == 1.0
    assert 0 <= found.blocks[2].probe <= 100
