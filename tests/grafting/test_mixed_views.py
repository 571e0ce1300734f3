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


@pytest.mark.parametrize("budget", [10**9, 1000])
def test_cached_mixed_views_are_the_same(dataset, frozen, budget):
    """The last ones are kept, for other trials; without room they are computed."""
    images = pictures(3)
    teacher = CachedTeacher(frozen.network, vgg(frozen.network.architecture), dataset, [images], budget)
    found, plain = teacher.mixed_inputs(images, 0, 1), MixedInputs(frozen, images, 0, 1)
    assert isinstance(found, CachedInputs) == (budget > 1000)
    drawn = grid(plain)
    for start in (0, 3, 4, 5, 6):
        expected = plain.features(start, *drawn)
        assert torch.allclose(found.features(start, *drawn), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert len(found) == 3 and found.views == plain.views
    assert teacher.mixed_inputs(images, 0, 1) is found
    assert teacher.mixed_inputs(images, 0, 2) is not found
