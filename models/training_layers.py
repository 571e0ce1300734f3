"""A teacher with layers for its training, and their removal at the end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.views import IMAGE_SIZE
from models.vgg import FIRST_GRAFTED, BlockwiseVGG, initialize


class TeacherWithTrainingLayers(nn.Module):
    """A teacher with layers that only its training uses: BatchNorm after convolutions, an auxiliary classifier."""

    def __init__(self, network: BlockwiseVGG, batchnorm: bool, auxiliary: bool, generator: torch.Generator):
        super().__init__()
        self.network = add_batchnorm(network) if batchnorm else network
        self.auxiliary = None
        if auxiliary:
            size = network.architecture.width_after(FIRST_GRAFTED - 1) * (IMAGE_SIZE >> FIRST_GRAFTED) ** 2
            linear = initialize(nn.Linear(size, network.classes), generator)
            self.auxiliary = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size, affine=False), linear)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images: (B, 3, 32, 32) -> logits (B, classes), and those of the auxiliary classifier or None."""
        features = self.network[:FIRST_GRAFTED](images)  # (B, 256, 4, 4)
        auxiliary_logits = None
        if self.auxiliary:
            flatten, standardize, linear = self.auxiliary
            auxiliary_logits = linear(standardize(flatten(features)) / 16)
        return self.network[FIRST_GRAFTED:](features), auxiliary_logits


def add_batchnorm(network: BlockwiseVGG) -> BlockwiseVGG:
    """Put a BatchNorm after every convolution; both take the convolution's position."""
    for block in network.features:
        for position, layer in enumerate(block):
            if isinstance(layer, nn.Conv2d):
                block[position] = nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))
    return network


@torch.no_grad()
def fold_batchnorm(network: BlockwiseVGG) -> BlockwiseVGG:
    """Fold every BatchNorm into the convolution before it. In evaluation mode, the outputs stay the same."""
    for block in network.features:
        for position, layer in enumerate(block):
            if isinstance(layer, nn.Sequential):
                block[position] = nn.utils.fusion.fuse_conv_bn_eval(*layer.eval())
    return network
