"""The training views of an image: crop 32x32 out of 40x40 (4 black pixels on each side), then flip or not.

There are exactly 9 x 9 x 2 = 162, all equally likely. View v shows the crop whose upper left corner is at
(v // 18, v // 2 % 9) in the padded image, mirrored when v is odd. View 80 is the image itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

IMAGE_SIZE = 32
PADDING = 4
OFFSETS = 2 * PADDING + 1
VIEWS = OFFSETS * OFFSETS * 2
IDENTITY = (PADDING * OFFSETS + PADDING) * 2  # the view that is the image itself


def pad(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H+8, W+8), black at the border."""
    return functional.pad(images, (PADDING,) * 4)


def crop(padded: Tensor, image: Tensor, view: Tensor) -> Tensor:
    """View `view[b]` of image `image[b]`, for every b.

    padded: (N, 3, H+8, W+8); image, view: (B,) integers on the same device -> (B, 3, H, W), same dtype.
    """
    height, width = padded.shape[-2] - 2 * PADDING, padded.shape[-1] - 2 * PADDING
    device = padded.device
    top, left, mirrored = view // (2 * OFFSETS), view // 2 % OFFSETS, (view % 2).bool()
    columns = torch.arange(width, device=device).expand(len(view), width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + left[:, None]
    rows = torch.arange(height, device=device) + top[:, None]
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
