import numpy as np
import pytest
import torch
from PIL import Image
from small import frozen_teacher, pictures
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow

from data.pictures import from_picture
from data.views import Normalization, Views, images_at_once
from grafting.distillation import draw_views
from grafting.inputs import Inputs


def as_array(picture):
    return np.asarray(picture).transpose(2, 0, 1)


def crops(views, stored, shown):
    """The views of those numbers of one stored image."""
    padded = views.pad(torch.from_numpy(stored)[None])
    return views.crop(padded, torch.zeros_like(shown), shown).numpy()


@pytest.mark.parametrize(
    ("size", "stored", "offsets", "count"), [(32, 32, 9, 162), (48, 55, 8, 128), (224, 256, 33, 2178)]
)
def test_the_views_are_what_pillow_resizes_pads_crops_and_flips(size, stored, offsets, count):
    views, picture = Views(size), Image.fromarray(pictures(1)[0].transpose(1, 2, 0)).resize((70, 50))
    assert (views.stored, views.offsets, views.count) == (stored, offsets, count)
    resized = pillow.center_crop(pillow.resize(picture, stored, InterpolationMode.BICUBIC), stored)
    image = from_picture(picture, "a picture", size, stored)
    assert image.tobytes() == as_array(resized).tobytes()
    padded = pillow.pad(resized, 4 if size == 32 else 0)
    shown = torch.arange(0, count, 1 if size < 224 else 41)  # 41: all places in turn, straight and mirrored
    for number, view in zip(shown.tolist(), crops(views, image, shown), strict=True):
        top, left = divmod(number // 2, offsets)
        expected = pillow.crop(padded, top, left, size, size)
        assert view.tobytes() == as_array(pillow.hflip(expected) if number % 2 else expected).tobytes()
    last = as_array(pillow.crop(padded, stored + 2 * views.padding - size, 0, size, size))
    assert np.array_equal(crops(views, image, torch.tensor([count - 2 * offsets]))[0], last)


@pytest.mark.parametrize("size", [32, 224])
def test_the_middle_view_is_what_test_images_show(size):
    """Of a CIFAR image, all of it; of a picture, the centre crop."""
    views, picture = Views(size), Image.fromarray(pictures(1)[0].transpose(1, 2, 0)).resize((300, 260))
    image = from_picture(picture, "a picture", size, views.stored)
    (middle,) = crops(views, image, torch.tensor([views.middle]))
    assert np.array_equal(middle, from_picture(picture, "a picture", size))
    centre = pillow.center_crop(Image.fromarray(image.transpose(1, 2, 0)), size)
    assert np.array_equal(middle, as_array(centre))


def test_each_image_is_shown_in_its_own_view():
    images, views, numbers = torch.from_numpy(pictures(2)), Views(32), torch.tensor([7, 130])
    both = views.crop(views.pad(images), torch.tensor([1, 0]), numbers).numpy()
    alone = [crops(views, image, numbers[i : i + 1])[0] for i, image in enumerate(images.flip(0).numpy())]
    assert np.array_equal(both, np.stack(alone))


def test_draws_are_uniform_and_every_image_comes_once_an_epoch():
    inputs, counts, positions = Inputs(frozen_teacher(), pictures(5)), np.zeros(162), np.zeros((5, 5))
    for epoch in range(2000):
        order, view = draw_views(inputs, 5, 0, epoch)
        assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
        np.add.at(counts, view.numpy(), 1)
        positions[np.arange(5), order.numpy()] += 1
    expected = counts.sum() / 162
    assert ((counts - expected) ** 2 / expected).sum() < 230  # chi-square, 161 degrees of freedom, p < 0.001
    assert np.abs(positions / 2000 - 0.2).max() < 0.045


def test_normalization_is_torchvisions():
    image = torch.from_numpy(pictures(1))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = pillow.normalize(pillow.to_tensor(image[0].numpy().transpose(1, 2, 0)), mean, std)
    assert torch.equal(Normalization(mean, std)(image)[0], expected)


def test_images_at_once_have_as_many_pixels():
    assert [images_at_once(500, size) for size in (32, 64, 224, 1000)] == [500, 125, 10, 1]
