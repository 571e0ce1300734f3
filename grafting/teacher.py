"""The frozen teacher: features in front of a block, logits, and test predictions.

`features(start, ...)` is the output of `teacher[:start]`, which is the input of block `start`. Here everything is
computed at every call: this is the reference. `acceleration/feature_cache.py` returns the same from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from data.datasets import LabelledImages
from data.views import Normalization, crop, pad
from models.vgg import BlockwiseVGG

TEST_BATCH = 500
Step = Callable[[Tensor, Tensor], Tensor]  # images (B,) and their views (B,) -> the batch's loss


class FrozenTeacher:
    """The frozen teacher and the test set.

    teacher: frozen, on its device. test: images (N, 3, 32, 32) uint8 with labels, which only count accuracy.
    """

    def __init__(self, teacher: BlockwiseVGG, normalization: Normalization, test: LabelledImages):
        self.network = teacher
        self.device = next(teacher.parameters()).device
        self.normalization = normalization
        self.test_images = torch.from_numpy(test.images)
        self.test_labels = torch.from_numpy(test.labels).to(self.device)

    def few_shot(self, images: np.ndarray) -> Views:
        """The views of few-shot images (N, 3, 32, 32) uint8."""
        return Views(self, images)

    @torch.no_grad()
    def test_batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set as (features (B, C, H, W), labels (B,))."""
        batches = zip(self.test_images.split(TEST_BATCH), self.test_labels.split(TEST_BATCH), strict=True)
        for images, labels in batches:
            yield self.network[:start](self.normalization(images.to(self.device))), labels

    @torch.no_grad()
    def predictions(self, network: nn.Module, start: int) -> Tensor:
        """The test set's classes (N,), as `network` predicts them from the features at `start`."""
        return torch.cat([network(features).argmax(1) for features, _ in self.test_batches(start)])

    def accuracy(self, network: nn.Module, start: int) -> float:
        """Test accuracy in percent of `network` on the features at `start`."""
        return 100 * int((self.predictions(network, start) == self.test_labels).sum()) / len(self.test_labels)


class Views:
    """The training views of few-shot images, with the teacher's features and logits."""

    def __init__(self, teacher: FrozenTeacher, images: np.ndarray):
        self.teacher = teacher
        self.images = pad(torch.from_numpy(images)).to(teacher.device)

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def features(self, start: int, image: Tensor, view: Tensor) -> Tensor:
        """The input of block `start` for view[b] of image[b]: (B, C, H, W)."""
        return self.teacher.network[:start](self.teacher.normalization(crop(self.images, image, view)))

    def logits(self, image: Tensor, view: Tensor) -> Tensor:
        """The teacher's logits for view[b] of image[b]: (B, classes)."""
        return self.features(len(self.teacher.network), image, view)

    def fast_network(self, network: nn.Module, start: int) -> nn.Module:
        """The same network on features at `start`, accelerated where these views allow it; here itself.

        network: blocks of student or teacher. Those of its parameters that require gradients stay where they are and
        are trained through the result. All others (under `torch.no_grad`, every parameter) must not change afterwards.
        """
        return network

    def fast_step(self, step: Step, optimizer: torch.optim.Optimizer) -> Step:
        """The same training step, accelerated where these views allow it; here unchanged."""
        return step
