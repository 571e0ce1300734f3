"""The cache answers as the frozen teacher does.

Where one convolution sees another batch than the plain path's, its sums may be ordered differently: there the
tolerance is 1e-5 of the largest value. The whole of a batch in one view order is the same operation.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from small import CLASSES, frozen_teacher, overflowing, pictures
from torch import nn

from acceleration import feature_cache
from acceleration.cached_inputs import CachedInputs, FeatureCache
from acceleration.feature_cache import CachedTeacher
from data.views import Views
from grafting.distillation import distance
from grafting.inputs import Inputs
from grafting.scions import scions
from models.logits import LogitsNotFinite
from models.networks import NETWORKS, vgg
from utils import machine
from utils.errors import BadInput

STARTS, VIEWS, LOGITS = (3, 4, 5), 162, 6
BYTES = {STARTS: 4 * VIEWS * (8 * 16 + 8 * 4 + 8 + 3), STARTS[:1]: 4 * VIEWS * (8 * 16 + 3)}  # of an image


@pytest.fixture
def cached(teacher, dataset):
    """A function that makes a cached teacher: of these subsets, with this budget in bytes."""
    return lambda subsets, budget, *dtype: CachedTeacher(
        teacher, vgg(teacher.architecture), dataset, subsets, budget, *dtype
    )


@pytest.fixture
def plain(teacher, dataset):
    return frozen_teacher(teacher, dataset)


def draws(images, count=40):
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(images, size=count)), torch.from_numpy(random.integers(VIEWS, size=count))


def scions_of(teacher, span):
    return nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0))[span[0] - 3 : span[1] - 3])


def test_the_same_operation_gives_the_same_bits_whatever_the_other_images(cached, plain):
    images, view = pictures(5), torch.arange(VIEWS)
    many, alone = (cached([some], 10**9).inputs(some) for some in (images, images[3:4]))
    image = torch.zeros(VIEWS, dtype=torch.long)
    for start in (*STARTS, LOGITS):
        expected = Inputs(plain, images).features(start, image + 3, view)
        assert torch.equal(many.features(start, image + 3, view), expected)
        assert torch.equal(alone.features(start, image, view), expected)


def test_the_first_block_may_be_grafted_too(teacher, dataset, plain):
    networks = replace(vgg(teacher.architecture), first=0)
    inputs = CachedTeacher(teacher, networks, dataset, [], 10**9).inputs(pictures(2))
    assert torch.equal(inputs.features(0, *draws(2)), Inputs(plain, pictures(2)).features(0, *draws(2)))


@pytest.mark.parametrize("starts", [STARTS, STARTS[:1]])
@pytest.mark.parametrize("span", [(3, 4), (4, 5), (5, 6), (3, 6)])
def test_loss_and_gradients(cached, plain, starts, span):
    images, drawn = pictures(4), draws(4)
    outcomes = []
    stored = cached([images], 4 * BYTES[starts]).inputs(images)
    assert sorted(stored.cached) == [*starts, LOGITS]
    for inputs in (Inputs(plain, images), stored):
        scion = scions_of(plain, span)
        network = inputs.fast_network(nn.Sequential(scion, plain.blocks[span[1] :]), span[0])
        loss = distance(network(inputs.features(span[0], *drawn)), inputs.logits(*drawn))
        loss.backward()
        outcomes.append((loss, [p.grad for p in scion.parameters()]))
    (loss, gradients), (found_loss, found_gradients) = outcomes
    assert torch.allclose(found_loss, loss, rtol=1e-5)
    for found, expected in zip(found_gradients, gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_an_image_is_filled_once_when_it_is_first_asked_for(cached, monkeypatch):
    images = pictures(5)
    both, filled, fill = cached([images[:2], images], 10**9), [], FeatureCache._fill
    monkeypatch.setattr(
        FeatureCache, "_fill", lambda self, index, image: filled.append(index) or fill(self, index, image)
    )
    for subset, new, count in ((images[:2], 2, 2), (images[:2], 0, 2), (images, 3, 5), (images[:2], 0, 5)):
        assert both.images_to_compute(subset) == new
        both.inputs(subset)
        assert len(filled) == len(set(filled)) == count


@pytest.mark.parametrize("start", [*STARTS, LOGITS])
def test_test_features(cached, dataset, plain, start):
    cached_teacher = cached([pictures(1)], 10**9)
    cached_teacher.test_batch = 7  # of 20 images
    expected = torch.cat([features for features, _ in plain.test_batches(start)])
    for _ in range(2):  # computed, then looked up
        found, labels = (torch.cat(parts) for parts in zip(*cached_teacher.test_batches(start), strict=True))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        assert labels.tolist() == dataset.test().labels.tolist()


def test_the_budget_and_the_subsets_own_size_decide_what_is_cached(cached):
    one, three = pictures(1), pictures(3)
    everything, little = 3 * BYTES[STARTS], 3 * BYTES[STARTS[:1]]

    def cached_starts(subset, budget):
        inputs = cached([one, three], budget).inputs(subset)
        return sorted(inputs.cached) if isinstance(inputs, CachedInputs) else None

    assert cached_starts(three, everything) == [3, 4, 5, 6]
    assert cached_starts(three, everything - 1) == cached_starts(three, little) == [3, 6]
    assert cached_starts(three, little - 1) is None
    assert cached_starts(one, little) == [3, 4, 5, 6]


def test_accuracy_counts_the_predictions_that_are_the_labels(plain, dataset, monkeypatch):
    labels = torch.from_numpy(dataset.test().labels)
    predictions = torch.where(torch.arange(20) < 5, labels, (labels + 1) % CLASSES)
    monkeypatch.setattr(plain, "predictions", lambda network, start: predictions)
    assert plain.accuracy(nn.Identity(), 6) == 25.0


@pytest.mark.parametrize("span", [(3, 4), (4, 5), (5, 6), (3, 5), (3, 6)])
def test_predictions(cached, plain, span):
    """Fast ones where the cache has them, of the network itself where the frozen teacher runs it."""
    network = nn.Sequential(scions_of(plain, span), plain.blocks[span[1] :]).requires_grad_(False)
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    last.bias -= torch.cat([network(features) for features, _ in plain.test_batches(span[0])]).mean(0)
    found = cached([pictures(1)], 10**9).predictions(network, span[0])
    assert found.tolist() == plain.predictions(network, span[0]).tolist()
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("start", [3, LOGITS])
def test_logits_that_are_not_finite_have_no_accuracy(cached, plain, start):
    """Of the frozen teacher, cached or not, and through fast predictions."""
    overflowing(plain.network)
    for teacher in (plain, cached([pictures(1)], 10**9)):
        for measure in (teacher.predictions, teacher.accuracy):
            with pytest.raises(LogitsNotFinite):
                measure(teacher.blocks[start:], start)


def test_half_the_bits_are_cached_in_half_the_bytes(cached, plain):
    images, drawn = pictures(4), draws(4)
    inputs = cached([images], 2 * BYTES[STARTS], torch.bfloat16).inputs(images)
    assert {values.dtype for values in inputs.cached.values()} == {torch.bfloat16} and len(inputs.cached) == 4
    expected = Inputs(plain, images).features(3, *drawn)
    assert torch.allclose(inputs.features(3, *drawn).float(), expected, rtol=2**-8)


def numbered(*groups):
    """A subset of each group of pictures, by their numbers."""
    every = pictures(1 + max(number for group in groups for number in group))
    return [every[list(group)] for group in groups]


@pytest.mark.parametrize(
    ("groups", "budget", "together"),
    [
        # the largest subset that contains the images and fits
        (((0,), (0, 1, 2), (0, 1, 2, 3, 4), tuple(range(6))), 5 * BYTES[STARTS], (5, 5, 5, 6)),
        (((0, 1, 2), (3, 4, 5)), 3 * BYTES[STARTS], (3, 3)),  # each just fits alone
        (((0,), (0, 1, 2)), 3 * BYTES[STARTS[:1]], (1, 3)),  # cached in front of other blocks
    ],
)
def test_what_is_cached_together_stays_within_the_budget(cached, groups, budget, together):
    subsets, caches = numbered(*groups), []
    teacher = cached(subsets, budget)
    for subset in (*subsets, subsets[0]):
        inputs = teacher.inputs(subset)
        starts = max(STARTS, STARTS[:1], key=lambda s: (len(subset) * BYTES[s] <= budget, len(s)))
        assert sorted(inputs.cached) == [*starts, LOGITS]
        assert sum(values.nbytes for values in inputs.cached.values()) <= budget
        caches.append(teacher.cache)
    assert [len(cache.index_of) for cache in caches] == [*together, together[0]]
    again = [True, True, False, False] if len(groups) == 4 else [False, False]
    assert [one is two for one, two in pairwise(caches)] == again


def test_all_of_the_caches_memory_is_written_to_at_once(cached, monkeypatch):
    """So that a run that starts later sees less free memory."""
    store = cached([pictures(2)], 10**9)
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch.full(size, torch.nan, **options))
    cache = FeatureCache(store, pictures(2), STARTS)
    assert not cache.filled and all(values.isfinite().all() for values in cache.cached.values())


def test_memory_that_cannot_be_had_or_is_not_free_is_one_line(cached, monkeypatch):
    """Linux may promise more than is free, and would end the process when it is written to."""
    store = cached([pictures(1)], 10**9)
    for free, fits in ((BYTES[STARTS], True), (BYTES[STARTS] - 1, False)):
        monkeypatch.setattr(machine, "free_host_memory", lambda free=free: free)
        if fits:
            FeatureCache(store, pictures(1), STARTS)
        else:
            with pytest.raises(BadInput, match="for the cached teacher features are not available; give less"):
                FeatureCache(store, pictures(1), STARTS)
    store.shapes = [(10**14,)] * 7
    monkeypatch.setattr(machine, "free_host_memory", lambda: 10**20)
    with pytest.raises(BadInput, match=r"--memory: 259200000\.0 GB for the cached teacher features are not available"):
        FeatureCache(store, pictures(1), STARTS)


def test_what_is_not_cached_is_said(dataset):
    """vgg16 and the 5000 images of CIFAR100 at N = 50, in three quarters of 8, 24 and 64 GB."""
    networks = NETWORKS["vgg16"]
    network = networks.teacher(100)
    nothing, first, everything = (
        CachedTeacher(network, networks, dataset, [], gigabytes * 10**9).not_cached(5000 * VIEWS)
        for gigabytes in (6, 18, 48)
    )
    assert nothing == (
        "teacher features do not fit into --memory and are computed from the images at every step;"
        " --memory 13.6 would hold those in front of block 3, --memory 21.9 would hold all"
    )
    assert first == (
        "teacher features in front of blocks 4, 5 do not fit into --memory and are computed from those in front of"
        " block 3 at every step; --memory 21.9 would hold all"
    )
    assert everything is None


def test_test_features_without_room_are_computed_for_each_accuracy(cached, plain, monkeypatch):
    monkeypatch.setattr(feature_cache, "TEST_FEATURES", 4 * 20 * (8 * 4 + 8))  # in front of blocks 4 and 5
    teacher = cached([], 10**9)
    for start in STARTS:
        tail = teacher.blocks[start:]
        assert teacher.accuracy(tail, start) == plain.accuracy(plain.blocks[start:], start)
    assert teacher.test_starts == (4, 5) and set(teacher.cached_test) == {4, 5}


def test_features_and_logits_of_a_step_agree_with_those_of_the_images(cached, plain):
    images, (image, view) = pictures(2), draws(2)
    for inputs in (Inputs(plain, images), cached([images], 10**9).inputs(images)):
        features, logits = inputs.features_at_both(4, LOGITS, image, view)
        expected = Inputs(plain, images).features(4, image, view)
        assert torch.allclose(features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        expected = Inputs(plain, images).logits(image, view)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_views_are_cached_where_epochs_show_most_of_them(cached):
    teacher = cached([], 10**9)
    assert teacher.caches(epochs=1)  # all of a CIFAR image go through the teacher at once
    teacher.views = Views(224)
    assert not teacher.caches(epochs=580) and teacher.caches(epochs=2178)
