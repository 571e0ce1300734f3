"""Mixed views: what they show, how many there are, and that the cache answers as they do."""

import numpy as np
import pytest
import torch
from small import frozen_teacher, pictures

from acceleration.cached_inputs import CachedInputs
from acceleration.feature_cache import CachedTeacher
from grafting import mixed_views
from grafting.mixed_views import MixedInputs
from models.networks import vgg


@pytest.fixture
def frozen(teacher):
    return frozen_teacher(teacher)


def grid(inputs):
    """Every image with each of its views."""
    images = torch.arange(len(inputs)).repeat_interleave(inputs.views)
    return images, torch.arange(inputs.views).repeat(len(inputs))


def test_a_mixed_view_is_a_view_with_a_square_of_another_view(frozen, monkeypatch):
    """Images of one colour: what is another's colour is a square, apart from the black border of crops."""
    monkeypatch.setattr(mixed_views, "COUNT", 3000)
    images = np.stack([np.full((3, 32, 32), colour, np.uint8) for colour in (50, 100, 150)])
    inputs = MixedInputs(frozen, images, 0)
    image, view = grid(inputs)
    shown = inputs.shown(image, view)
    assert shown.shape == (3000, 3, 32, 32) and shown.dtype == torch.uint8
    shares, colours = [], torch.tensor([50, 100, 150])
    for picture, own in zip(shown[:, 0], image.tolist(), strict=True):
        is_other = (picture != colours[own]) & (picture != 0)
        if not is_other.any():
            continue
        assert len(picture[is_other].unique()) == 1
        rows, columns = is_other.any(1).nonzero(), is_other.any(0).nonzero()
        box = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert not (box == colours[own]).any()
        shares.append(is_other.float().mean().item())
    assert len(shares) > 1700  # two of three are another's; the smallest squares have no pixel
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.08)


def test_all_images_together_have_a_fixed_number_of_mixed_views_and_at_least_one_each(frozen, monkeypatch):
    monkeypatch.setattr(mixed_views, "COUNT", 12)
    for images, views in ((1, 12), (3, 4), (5, 2), (20, 1)):
        inputs = MixedInputs(frozen, pictures(images), 0)
        assert inputs.views == views and len(inputs.shown(*grid(inputs))) == images * views


def test_the_draws_depend_on_the_seed_key_alone(frozen):
    first, same, other = (MixedInputs(frozen, pictures(3), *key) for key in ((0, 1), (0, 1), (1, 1)))
    assert torch.equal(first.shown(*grid(first)), same.shown(*grid(same)))
    assert not torch.equal(first.shown(*grid(first)), other.shown(*grid(other)))


OF_VIEW = 4 * (8 * 16 + 8 * 4 + 8 + 3)  # bytes of the features in front of blocks 3, 4 and 5, and of the logits


@pytest.fixture
def cached(dataset, frozen):
    networks = vgg(frozen.network.architecture)
    return lambda images, budget: CachedTeacher(frozen.network, networks, dataset, [images], budget)


@pytest.mark.parametrize(("budget", "starts"), [(10**9, [3, 4, 5, 6]), (300_000, [3, 6]), (1000, None)])
def test_cached_mixed_views_are_the_same(cached, frozen, budget, starts):
    """As far as they fit; without room they are computed."""
    images = pictures(3)
    found, plain = cached(images, budget).mixed_inputs(images, 0, 1), MixedInputs(frozen, images, 0, 1)
    assert (sorted(found.cached) if isinstance(found, CachedInputs) else None) == starts
    drawn = grid(plain)
    for start in (0, 3, 4, 5, 6):
        expected = plain.features(start, *drawn)
        assert torch.allclose(found.features(start, *drawn), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert len(found) == 3 and found.views == plain.views


def test_mixed_views_are_kept_as_long_as_there_is_room(cached):
    """With the views that other cells of the run have cached, they stay within the budget."""
    images, one = pictures(3), 480 * OF_VIEW
    teacher = cached(images, 2 * one + 3 * 162 * OF_VIEW)
    views, first, second = (
        teacher.inputs(images),
        teacher.mixed_inputs(images, 0, 1),
        teacher.mixed_inputs(images, 0, 2),
    )
    assert teacher.mixed_inputs(images, 0, 1) is first and teacher.inputs(images).cached is views.cached
    third = teacher.mixed_inputs(images, 0, 3)  # instead of the first
    assert list(teacher.mixed.values()) == [second, third] and teacher.cache is not None
    teacher = cached(images, one)
    teacher.inputs(images)
    teacher.mixed_inputs(images, 0, 1)
    assert teacher.cache is None
    teacher = cached(images, 3 * 162 * OF_VIEW)
    teacher.mixed_inputs(images, 0, 1)
    teacher.inputs(images)
    assert not teacher.mixed
