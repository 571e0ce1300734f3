"""A teacher in training, and back to the plain layout afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.views import IMAGE_SIZE
from models.vgg import FIRST_GRAFTED, BlockwiseVGG, initialize


class TeacherWithTrainingLayers(nn.Module):
    """A teacher in training, with what only training needs: BatchNorm behind its convolutions, a second head."""

    def __init__(self, network: BlockwiseVGG, batchnorm: bool, auxiliary: bool, generator: torch.Generator):
        super().__init__()
        self.network = add_batchnorm(network) if batchnorm else network
        self.auxiliary = None
        if auxiliary:
            size = network.architecture.width_after(FIRST_GRAFTED - 1) * (IMAGE_SIZE >> FIRST_GRAFTED) ** 2
            linear = initialize(nn.Linear(size, network.classes), generator)
            self.auxiliary = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size, affine=False), linear)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images: (B, 3, 32, 32) -> logits (B, classes), and those read off block 2's output, if there are any."""
        features = self.network[:FIRST_GRAFTED](images)  # (B, 256, 4, 4)
        second = None
        if self.auxiliary:
            flatten, standardize, linear = self.auxiliary
            second = linear(standardize(flatten(features)) / 16)
        return self.network[FIRST_GRAFTED:](features), second


def add_batchnorm(network: BlockwiseVGG) -> BlockwiseVGG:
    """Put a BatchNorm behind every convolution, at the convolution's own position."""
    for block in network.features:
        for position, layer in enumerate(block):
            if isinstance(layer, nn.Conv2d):
                block[position] = nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))
    return network


@torch.no_grad()
def fold_batchnorm(network: BlockwiseVGG) -> BlockwiseVGG:
    """Absorb every BatchNorm behind a convolution into its weights and bias; same outputs in evaluation mode."""
    for block in network.features:
        for position, layer in enumerate(block):
            if isinstance(layer, nn.Sequential):
                block[position] = nn.utils.fusion.fuse_conv_bn_eval(*layer.eval())
    return network
