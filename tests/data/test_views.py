import numpy as np
import torch
from PIL import Image
from small import pictures
from torchvision.transforms import functional as pillow

from data.views import IDENTITY, VIEWS, Normalization, crop, pad
from grafting.distillation import draw_views


def test_the_views_are_what_pillow_pads_crops_and_flips():
    image = pictures(1)[0]
    padded = pillow.pad(Image.fromarray(image.transpose(1, 2, 0)), 4)
    expected = set()
    for top in range(9):
        for left in range(9):
            cropped = pillow.crop(padded, top, left, 32, 32)
            for mirrored in (cropped, pillow.hflip(cropped)):
                expected.add(np.asarray(mirrored).transpose(2, 0, 1).tobytes())
    views = crop(pad(torch.from_numpy(image)[None]), torch.zeros(VIEWS, dtype=torch.long), torch.arange(VIEWS))
    assert len(expected) == VIEWS == 162
    assert {view.numpy().tobytes() for view in views} == expected


def test_a_views_number_gives_its_position():
    image = torch.from_numpy(pictures(1))
    top, left = 7, 2
    straight, mirrored = crop(
        pad(image), torch.zeros(2, dtype=torch.long), torch.tensor([18 * top + 2 * left] * 2) + torch.tensor([0, 1])
    )
    assert torch.equal(straight, pad(image)[0, :, top : top + 32, left : left + 32])
    assert torch.equal(mirrored, straight.flip(2))


def test_the_middle_view_is_the_image():
    images = torch.from_numpy(pictures(2))
    assert torch.equal(crop(pad(images), torch.tensor([1, 0]), torch.tensor([IDENTITY] * 2)), images.flip(0))


def test_draws_are_uniform_and_every_image_comes_once_an_epoch():
    counts = np.zeros(VIEWS)
    positions = np.zeros((5, 5))
    for epoch in range(2000):
        order, view = draw_views(5, 0, epoch)
        assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
        np.add.at(counts, view.numpy(), 1)
        positions[np.arange(5), order.numpy()] += 1
    expected = counts.sum() / VIEWS
    assert ((counts - expected) ** 2 / expected).sum() < 230  # chi-square, 161 degrees of freedom, p < 0.001
    assert np.abs(positions / 2000 - 0.2).max() < 0.045


def test_normalization_is_torchvisions():
    image = torch.from_numpy(pictures(1))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = pillow.normalize(pillow.to_tensor(image[0].numpy().transpose(1, 2, 0)), mean, std)
    assert torch.equal(Normalization(mean, std)(image)[0], expected)
