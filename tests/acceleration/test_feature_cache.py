"""The cache answers as the frozen teacher does.

Where one convolution sees another batch than the plain path's, its sums may be ordered differently: there the
tolerance is 1e-5 of the largest value. The whole of a batch in one view order is the same operation.
"""

import numpy as np
import pytest
import torch
from small import CLASSES, pictures
from torch import nn

from acceleration import feature_cache
from acceleration.feature_cache import STARTS, CachedTeacher, CachedViews, FeatureCache, bytes_cached
from data.views import VIEWS
from grafting.distillation import distance
from grafting.scions import scions
from grafting.teacher import FrozenTeacher
from models.vgg import ARCHITECTURES, BlockwiseVGG
from utils import machine
from utils.errors import BadInput

CACHED_STARTS = [STARTS, STARTS[:1]]


@pytest.fixture
def plain(teacher, dataset):
    return FrozenTeacher(teacher, dataset.normalization, dataset.test())


def cached(teacher, dataset, images, starts=STARTS):
    budget = bytes_cached(teacher, len(images), starts)
    return CachedTeacher(teacher, dataset.normalization, dataset.test(), [images], budget)


def draws(images, count=40):
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(images, size=count)), torch.from_numpy(random.integers(VIEWS, size=count))


@pytest.mark.parametrize("starts", CACHED_STARTS)
@pytest.mark.parametrize("start", [3, 4, 5, 6])
def test_features_and_logits(teacher, dataset, plain, starts, start):
    images = pictures(4)
    image, view = draws(4)
    expected = plain.few_shot(images).features(start, image, view)
    found = cached(teacher, dataset, images, starts).few_shot(images).features(start, image, view)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_same_operation_gives_the_same_bits(teacher, dataset, plain):
    images = pictures(2)
    image, view = torch.ones(VIEWS, dtype=torch.long), torch.arange(VIEWS)
    for start in (*STARTS, 6):
        expected = plain.few_shot(images).features(start, image, view)
        assert torch.equal(cached(teacher, dataset, images).few_shot(images).features(start, image, view), expected)


@pytest.mark.parametrize("starts", CACHED_STARTS)
@pytest.mark.parametrize("span", [(3, 4), (4, 5), (5, 6), (3, 6)])
def test_loss_and_gradients(teacher, dataset, plain, starts, span):
    images = pictures(4)
    image, view = draws(4)
    outcomes = []
    for views in (plain.few_shot(images), cached(teacher, dataset, images, starts).few_shot(images)):
        scion = nn.Sequential(*scions(teacher.architecture, teacher.classes, torch.Generator().manual_seed(0)))
        scion = scion[span[0] - 3 : span[1] - 3]
        network = views.fast_network(nn.Sequential(scion, teacher[span[1] :]), span[0])
        student = network(views.features(span[0], image, view))
        loss = distance(student, views.logits(image, view))
        loss.backward()
        outcomes.append((loss, [p.grad for p in scion.parameters()]))
    (loss, gradients), (found_loss, found_gradients) = outcomes
    assert torch.allclose(found_loss, loss, rtol=1e-5)
    for found, expected in zip(found_gradients, gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_what_is_cached_does_not_depend_on_the_other_images(teacher, dataset):
    images = pictures(5)
    many, few = cached(teacher, dataset, images), cached(teacher, dataset, images[3:4])
    image, view = torch.zeros(VIEWS, dtype=torch.long), torch.arange(VIEWS)
    for start in (*STARTS, 6):
        alone = few.few_shot(images[3:4]).features(start, image, view)
        assert torch.equal(many.few_shot(images).features(start, image + 3, view), alone)


def test_an_image_is_filled_once_when_it_is_first_asked_for(teacher, dataset, monkeypatch):
    images = pictures(5)
    both = CachedTeacher(teacher, dataset.normalization, dataset.test(), [images[:2], images], 10**9)
    filled = []
    fill = FeatureCache._fill
    monkeypatch.setattr(
        FeatureCache, "_fill", lambda self, index, image: filled.append(index) or fill(self, index, image)
    )
    for subset, count in ((images[:2], 2), (images[:2], 2), (images, 5), (images[:2], 5)):
        both.few_shot(subset)
        assert len(filled) == len(set(filled)) == count


@pytest.mark.parametrize("start", [3, 4, 5, 6])
def test_test_features(teacher, dataset, plain, start):
    cached_teacher = cached(teacher, dataset, pictures(1))
    cached_teacher.test_batch = 7  # of 20 images
    expected = torch.cat([features for features, _ in plain.test_batches(start)])
    for _ in range(2):  # computed, then looked up
        found, labels = (torch.cat(parts) for parts in zip(*cached_teacher.test_batches(start), strict=True))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        assert labels.tolist() == dataset.test().labels.tolist()


def test_the_budget_and_the_subsets_own_size_decide_what_is_cached(teacher, dataset):
    one, three = pictures(1), pictures(3)
    everything, little = bytes_cached(teacher, 3, STARTS), bytes_cached(teacher, 3, STARTS[:1])
    assert little == 4 * 3 * VIEWS * (8 * 4 * 4 + 3)

    def cached_starts(subset, budget):
        views = CachedTeacher(teacher, dataset.normalization, dataset.test(), [one, three], budget).few_shot(subset)
        return sorted(views.cache.cached) if isinstance(views, CachedViews) else None

    assert cached_starts(three, everything) == [3, 4, 5, 6]
    assert cached_starts(three, everything - 1) == cached_starts(three, little) == [3, 6]
    assert cached_starts(three, little - 1) is None
    assert cached_starts(one, little) == [3, 4, 5, 6]


def test_subsets_of_unlike_sizes_share_one_budget(teacher, dataset):
    one, three = pictures(1), pictures(3)
    budget = bytes_cached(teacher, 3, STARTS[:1])
    shared = CachedTeacher(teacher, dataset.normalization, dataset.test(), [one, three], budget)
    for subset, count in ((one, 1), (three, 3), (one, 1)):
        shared.few_shot(subset)
        assert len(shared.cache.index_of) == count


def test_accuracy_counts_the_predictions_that_are_the_labels(plain, dataset, monkeypatch):
    labels = torch.from_numpy(dataset.test().labels)
    predictions = torch.where(torch.arange(20) < 5, labels, (labels + 1) % CLASSES)
    monkeypatch.setattr(plain, "predictions", lambda network, start: predictions)
    assert plain.accuracy(nn.Identity(), 6) == 25.0


@pytest.mark.parametrize("span", [(3, 4), (4, 5), (5, 6), (3, 5), (3, 6)])
def test_predictions(teacher, dataset, plain, span):
    """Fast ones where the cache has them, of the network itself where the frozen teacher runs it."""
    scion = nn.Sequential(*scions(teacher.architecture, teacher.classes, torch.Generator().manual_seed(0)))
    network = nn.Sequential(scion[span[0] - 3 : span[1] - 3], teacher[span[1] :]).requires_grad_(False)
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    last.bias -= torch.cat([network(features) for features, _ in plain.test_batches(span[0])]).mean(0)
    found = cached(teacher, dataset, pictures(1)).predictions(network, span[0])
    assert found.tolist() == plain.predictions(network, span[0]).tolist()
    assert len(set(found.tolist())) > 1


def test_half_the_bits_are_cached_in_half_the_bytes(teacher, dataset, plain):
    images = pictures(4)
    budget = bytes_cached(teacher, 4, STARTS, torch.bfloat16)
    assert 2 * budget == bytes_cached(teacher, 4, STARTS)
    half = CachedTeacher(teacher, dataset.normalization, dataset.test(), [images], budget, torch.bfloat16)
    views = half.few_shot(images)
    assert views.cache.starts == STARTS and {cached.dtype for cached in views.cache.cached.values()} == {torch.bfloat16}
    image, view = draws(4)
    expected = plain.few_shot(images).features(3, image, view)
    assert torch.allclose(views.features(3, image, view).float(), expected, rtol=2**-8)


def test_the_union_of_subsets_stays_within_the_budget(teacher, dataset):
    """Subsets that share one image: the one asked for, and those behind it as far as they fit together."""
    images = pictures(9)
    subsets = [images[[0, 1, 2]], images[[0, 3, 4]], images[[0, 5, 6]], images[[0, 7, 8]]]
    budget = bytes_cached(teacher, 5, STARTS)
    some = CachedTeacher(teacher, dataset.normalization, dataset.test(), subsets, budget)
    built = []
    for subset in (*subsets, subsets[0]):
        views = some.few_shot(subset)
        assert sum(cached.nbytes for cached in views.cache.cached.values()) <= budget and views.cache.starts == STARTS
        built.append((id(views.cache), len(views.cache.index_of)))
    assert [count for _, count in built] == [5, 5, 5, 5, 5]
    assert built[0] == built[1] != built[2] == built[3] != built[4]


def test_a_subset_that_just_fits_is_cached_alone(teacher, dataset):
    subsets = [pictures(3, seed) for seed in (1, 2)]
    budget = bytes_cached(teacher, 3, STARTS)
    for asked in (subsets[0], subsets[1], pictures(3, seed=3)):
        kept = CachedTeacher(teacher, dataset.normalization, dataset.test(), subsets, budget).few_shot(asked)
        assert len(kept.cache.index_of) == 3 and kept.cache.starts == STARTS


def test_a_subset_that_is_cached_elsewhere_takes_no_room_beside_another(teacher, dataset):
    four, one = pictures(4, seed=1), pictures(1, seed=2)
    budget = bytes_cached(teacher, 5, STARTS[:1])
    kept = CachedTeacher(teacher, dataset.normalization, dataset.test(), [four, one], budget)
    for subset, starts in ((four, STARTS[:1]), (one, STARTS)):
        cache = kept.few_shot(subset).cache
        assert (len(cache.index_of), cache.starts) == (len(subset), starts)


def test_all_of_the_caches_memory_is_written_to_at_once(teacher, dataset, monkeypatch):
    """So that a run that starts later sees less free memory."""
    store = cached(teacher, dataset, pictures(2))
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch.full(size, torch.nan, **options))
    cache = FeatureCache(store, pictures(2), STARTS, torch.float32)
    assert not cache.filled and all(cached.isfinite().all() for cached in cache.cached.values())


def test_memory_that_cannot_be_had_is_one_line(teacher, dataset, monkeypatch):
    store = cached(teacher, dataset, pictures(1))
    monkeypatch.setattr(feature_cache, "output_shapes", lambda network: dict.fromkeys(range(7), (10**14,)))
    with pytest.raises(BadInput, match=r"--memory: 259200000\.0 GB for the cached teacher features are not available"):
        FeatureCache(store, pictures(1), STARTS, torch.float32)


def test_more_memory_than_is_free_is_not_taken(teacher, dataset, monkeypatch):
    """Linux may promise it, and would end the process when it is written to."""
    store = cached(teacher, dataset, pictures(1))
    needed = bytes_cached(store.network, 1, STARTS)
    monkeypatch.setattr(machine, "free_host_memory", lambda: needed - 1)
    with pytest.raises(BadInput, match="for the cached teacher features are not available; give less"):
        FeatureCache(store, pictures(1), STARTS, torch.float32)
    monkeypatch.setattr(machine, "free_host_memory", lambda: needed)
    FeatureCache(store, pictures(1), STARTS, torch.float32)


def test_what_is_not_cached_is_said(teacher, dataset):
    """vgg16 and the 5000 images of CIFAR100 at N = 50, in three quarters of 8, 24 and 64 GB."""
    network = BlockwiseVGG(ARCHITECTURES["vgg16"], 100)

    def said(gigabytes):
        holder = CachedTeacher(network, dataset.normalization, dataset.test(), [], int(gigabytes * 1e9))
        return holder.not_cached(5000)

    nothing, first, everything = said(6), said(18), said(48)
    assert nothing == (
        "teacher features do not fit into --memory and are computed from the images at every step;"
        " --memory 13.6 would hold those in front of block 3, --memory 21.9 would hold all"
    )
    assert first == (
        "teacher features in front of blocks 4 and 5 do not fit into --memory and are computed from those in front of"
        " block 3 at every step; --memory 21.9 would hold all"
    )
    assert everything is None
