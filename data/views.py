"""The training views of an image: every crop of it, and the mirror image of every crop.

CIFAR: an image of 32x32 is padded by 4 black pixels on each side, and a view is a crop of 32x32: 9 x 9 x 2 = 162
views. Pictures at another size S: the shorter side is resized to S * 8/7, the middle square is stored, and a view is a
crop of SxS; for S = 224 there are 33 x 33 x 2 = 2,178 views. All are equally likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CIFAR_SIZE, CIFAR_PADDING = 32, 4


@dataclass(frozen=True)
class Views:
    """The views of images that are shown to a network at size x size pixels.

    View v shows the crop whose upper left corner is at (v // 2 // offsets, v // 2 % offsets) in the padded image; it is
    mirrored when v is odd.
    """

    size: int

    @property
    def padding(self) -> int:
        """Black pixels on each side."""
        return CIFAR_PADDING if self.size == CIFAR_SIZE else 0

    @property
    def stored(self) -> int:
        """Pixels on each side of a stored image."""
        return CIFAR_SIZE if self.size == CIFAR_SIZE else round(self.size * 8 / 7)

    @property
    def offsets(self) -> int:
        """Places of the crop in each direction."""
        return self.stored + 2 * self.padding - self.size + 1

    @property
    def count(self) -> int:
        return 2 * self.offsets**2

    @property
    def middle(self) -> int:
        """The view that is the middle of the image; of a CIFAR image, the image itself."""
        margin = (self.offsets - 1) // 2
        return 2 * (margin * self.offsets + margin)

    def pad(self, images: Tensor) -> Tensor:
        """(N, 3, stored, stored) -> (N, 3, stored + 2 padding, stored + 2 padding), black at the border."""
        return functional.pad(images, (self.padding,) * 4)

    def crop(self, padded: Tensor, image: Tensor, view: Tensor) -> Tensor:
        """View `view[b]` of image `image[b]`, for every b.

        padded: from pad(); image, view: (B,) integers on the same device -> (B, 3, size, size), same dtype.
        """
        device, pixels = padded.device, torch.arange(self.size, device=padded.device)
        top, left, mirrored = view // (2 * self.offsets), view // 2 % self.offsets, (view % 2).bool()
        columns = torch.where(mirrored[:, None], pixels.flip(0), pixels) + left[:, None]
        rows = pixels + top[:, None]
        channels = torch.arange(padded.shape[1], device=device)
        return padded[
            image[:, None, None, None],
            channels[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]


class Normalization:
    """uint8 images -> float32, scaled to [0, 1], minus mean, over standard deviation (per channel)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = tuple(mean), tuple(std)

    @property
    def content(self) -> dict[str, list[float]]:
        """As plain values, for records."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> float32."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return images.float().div_(255).sub_(mean).div_(std)
