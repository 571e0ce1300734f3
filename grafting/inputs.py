"""What is learned from: few-shot images in all their views, as the frozen teacher's features and logits."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from grafting.teacher import FrozenTeacher

Step = Callable[[Tensor, Tensor], Tensor]  # images (B,) and their views (B,) -> the batch's loss


class Inputs:
    """Few-shot images (N, 3, stored, stored) uint8. Their features are computed at every call.

    views: how many each image has (data/views.py; MixedInputs have others). `acceleration/cached_inputs.py` has inputs
    whose features are looked up.
    """

    def __init__(self, teacher: FrozenTeacher, images: np.ndarray):
        self.teacher, self.views = teacher, teacher.views.count
        self.padded = teacher.views.pad(torch.from_numpy(images)).to(teacher.device)

    def __len__(self) -> int:
        return len(self.padded)

    def shown(self, image: Tensor, view: Tensor) -> Tensor:
        """view[b] of image[b]: (B, 3, size, size) uint8."""
        return self.teacher.views.crop(self.padded, image, view)

    @torch.no_grad()
    def features(self, start: int, image: Tensor, view: Tensor) -> Tensor:
        """The input of block `start` for view[b] of image[b]: (B, C, H, W)."""
        return self.teacher.blocks[:start](self.teacher.normalization(self.shown(image, view)))

    def features_at_both(self, start: int, end: int, image: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the blocks `start` and `end`, start <= end."""
        features = self.features(start, image, view)
        with torch.no_grad():
            return features, self.teacher.blocks[start:end](features)

    def logits(self, image: Tensor, view: Tensor) -> Tensor:
        """The teacher's logits for view[b] of image[b]: (B, classes)."""
        return self.features(len(self.teacher.blocks), image, view)

    def fast_network(self, network: nn.Module, start: int) -> nn.Module:
        """The same network on features at `start`, accelerated where these inputs allow it; here itself.

        Parameters that require gradients stay where they are and are trained through the result. All others (under
        `torch.no_grad`, every parameter) must not change afterwards.
        """
        return network

    def fast_step(self, step: Step, optimizer: torch.optim.Optimizer) -> Step:
        """The same training step, accelerated where these inputs allow it; here unchanged."""
        return step
