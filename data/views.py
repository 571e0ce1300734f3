"""The training views of an image: every crop of it, and the mirror image of every crop.

CIFAR: an image of 32x32 is padded by 4 black pixels on each side, and a view is a crop of 32x32: 9 x 9 x 2 = 162
views. Pictures at another size S: the shorter side is resized to S * 8/7, the middle square is stored, and a view is a
crop of SxS; for S = 224 there are 33 x 33 x 2 = 2,178 views. All are equally likely.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CIFAR_SIZE = 32
TEST_BATCH = 500  # test images of 32x32 pixels that go through a network together


class Views:
    """The views of images that are shown to a network at size x size pixels.

    View v shows the crop whose upper left corner is at (v // 2 // offsets, v // 2 % offsets) in the padded image; it is
    mirrored when v is odd. middle: the view that is the middle of the image; of a CIFAR image, the image itself.
    """

    def __init__(self, size: int):
        self.size = size
        self.padding = 4 if size == CIFAR_SIZE else 0  # black pixels on each side
        self.stored = CIFAR_SIZE if size == CIFAR_SIZE else round(size * 8 / 7)  # pixels on each side, without padding
        self.offsets = self.stored + 2 * self.padding - size + 1  # places of the crop in each direction
        self.count = 2 * self.offsets**2
        self.middle = (self.offsets - 1) // 2 * (self.offsets + 1) * 2

    def pad(self, images: Tensor) -> Tensor:
        """(N, 3, stored, stored) -> (N, 3, stored + 2 padding, stored + 2 padding), black at the border."""
        return functional.pad(images, (self.padding,) * 4) if self.padding else images

    def crop(self, padded: Tensor, image: Tensor, view: Tensor) -> Tensor:
        """View `view[b]` of image `image[b]`, for every b.

        padded: from pad(); image, view: (B,) integers on the same device -> (B, 3, size, size), same dtype.
        """
        pixels = torch.arange(self.size, device=padded.device)
        top, left, mirrored = view // (2 * self.offsets), view // 2 % self.offsets, (view % 2).bool()
        columns = torch.where(mirrored[:, None], pixels.flip(0), pixels) + left[:, None]
        rows = pixels + top[:, None]
        channels = torch.arange(padded.shape[1], device=padded.device)[:, None, None]
        return padded[image[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]


def images_at_once(of_32: int, size: int) -> int:
    """How many images of size x size pixels have as many pixels as `of_32` images of 32x32; at least one."""
    return max(1, of_32 * CIFAR_SIZE**2 // size**2)


class Normalization:
    """uint8 images -> float32, scaled to [0, 1], minus mean, over standard deviation (per channel)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = tuple(mean), tuple(std)
        self.content = {"mean": list(mean), "std": list(std)}  # for records

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> float32."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return images.float().div_(255).sub_(mean).div_(std)
