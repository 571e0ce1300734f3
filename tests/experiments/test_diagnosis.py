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
from experiments.diagnosis import diagnose
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
