"""The store answers as the plain teacher does.

Where one convolution sees another batch than the plain path's, its sums may be ordered differently: there the
tolerance is 1e-5 of the largest value. The whole of a batch in one view order is the same operation.
"""

import numpy as np
import pytest
import torch
from conftest import pictures
from torch import nn

from data.views import VIEWS
from grafting.distillation import distance
from grafting.scions import scions
from grafting.store import CUTS, PlainTeacher, StoredTeacher, bytes_kept, frozen_teacher

KEPT = [CUTS, CUTS[:1]]


@pytest.fixture
def plain(teacher, dataset):
    return PlainTeacher(teacher, dataset.normalization, dataset.test())


def stored(teacher, dataset, images, cuts=CUTS):
    return StoredTeacher(teacher, dataset.normalization, dataset.test(), images, cuts)


def draws(images, count=40):
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(images, size=count)), torch.from_numpy(random.integers(VIEWS, size=count))


@pytest.mark.parametrize("cuts", KEPT)
@pytest.mark.parametrize("cut", [3, 4, 5, 6])
def test_features_and_logits(teacher, dataset, plain, cuts, cut):
    images = pictures(4)
    image, view = draws(4)
    expected = plain.few_shot(images).features(cut, image, view)
    found = stored(teacher, dataset, images, cuts).few_shot(images).features(cut, image, view)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_same_operation_gives_the_same_bits(teacher, dataset, plain):
    images = pictures(2)
    image, view = torch.ones(VIEWS, dtype=torch.long), torch.arange(VIEWS)
    for cut in (*CUTS, 6):
        expected = plain.few_shot(images).features(cut, image, view)
        assert torch.equal(stored(teacher, dataset, images).few_shot(images).features(cut, image, view), expected)


@pytest.mark.parametrize("cuts", KEPT)
@pytest.mark.parametrize("span", [(3, 4), (4, 5), (5, 6), (3, 6)])
def test_loss_and_gradients(teacher, dataset, plain, cuts, span):
    images = pictures(4)
    image, view = draws(4)
    outcomes = []
    for views in (plain.few_shot(images), stored(teacher, dataset, images, cuts).few_shot(images)):
        row = nn.Sequential(*scions(teacher.architecture, teacher.classes, torch.Generator().manual_seed(0)))
        row = row[span[0] - 3 : span[1] - 3]
        student = teacher[span[1] :](row(views.features(span[0], image, view)))
        loss = distance(student, views.logits(image, view))
        loss.backward()
        outcomes.append((loss, [p.grad for p in row.parameters()]))
    (loss, gradients), (found_loss, found_gradients) = outcomes
    assert torch.allclose(found_loss, loss, rtol=1e-5)
    for found, expected in zip(found_gradients, gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_what_is_kept_does_not_depend_on_the_other_images(teacher, dataset):
    images = pictures(5)
    many, few = stored(teacher, dataset, images), stored(teacher, dataset, images[3:4])
    many.few_shot(images)
    image, view = torch.zeros(VIEWS, dtype=torch.long), torch.arange(VIEWS)
    for cut in (*CUTS, 6):
        alone = few.few_shot(images[3:4]).features(cut, image, view)
        assert torch.equal(many.few_shot(images).features(cut, image + 3, view), alone)


def test_an_image_is_filled_once_when_it_is_first_asked_for(teacher, dataset, monkeypatch):
    images = pictures(5)
    store = stored(teacher, dataset, images)
    assert not store.filled
    store.few_shot(images[:2])
    assert len(store.filled) == 2
    fills = []
    monkeypatch.setattr(store, "_fill", lambda row, image: fills.append(row))
    store.few_shot(images[:2])
    assert fills == []


@pytest.mark.parametrize("cut", [3, 4, 5, 6])
def test_test_features(teacher, dataset, plain, cut):
    store = stored(teacher, dataset, pictures(1))
    expected = torch.cat([features for features, _ in plain.test_batches(cut)])
    for _ in range(2):  # computed, then looked up
        found, labels = (torch.cat(parts) for parts in zip(*store.test_batches(cut), strict=True))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        assert labels.tolist() == dataset.test().labels.tolist()


def test_the_budget_decides_what_is_kept(teacher, dataset):
    images = np.concatenate([pictures(3), pictures(3)])  # repeated images count once

    def kept(budget):
        chosen = frozen_teacher(teacher, dataset.normalization, dataset.test(), images, budget)
        return sorted(chosen.kept) if isinstance(chosen, StoredTeacher) else None

    everything, little = bytes_kept(teacher, 3, CUTS), bytes_kept(teacher, 3, CUTS[:1])
    assert little == 4 * 3 * VIEWS * (8 * 4 * 4 + 3)
    assert kept(everything) == [3, 4, 5, 6]
    assert kept(everything - 1) == kept(little) == [3, 6]
    assert kept(little - 1) is None
