"""A teacher with layers for its training, and their removal at the end."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.architectures import FIRST_GRAFTED
from models.networks import initialize
from models.teacher_recipe import TeacherRecipe
from models.vgg import BlockwiseVGG, cut


class TeacherWithTrainingLayers(nn.Module):
    """A teacher with layers that only its training uses: BatchNorm after convolutions, heads on block 2's output."""

    def __init__(self, network: nn.Module, recipe: TeacherRecipe, generator: torch.Generator, image_size: int):
        super().__init__()
        self.network = add_batchnorm(network) if recipe.batchnorm else network
        self.heads = nn.ModuleList()
        if recipe.linear_head:
            self.heads.append(LinearHead(network, recipe.linear_head, generator, image_size))
        if recipe.prototype_head:
            self.heads.append(PrototypeHead(network, recipe.prototype_head, image_size))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, 3, S, S), labels: (B,) -> logits (B, classes), and the sum of the heads' losses."""
        if not self.heads:
            return self.network(images), torch.zeros((), device=images.device)
        blocks = cut(self.network)
        features = blocks[:FIRST_GRAFTED](images)  # (B, 256, 4, 4)
        losses = [head(features, labels) for head in self.heads]
        return blocks[FIRST_GRAFTED:](features), sum(losses, torch.zeros((), device=images.device))


class LinearHead(nn.Module):
    """A linear classifier that keeps block 2's output separable by class (deep supervision: Lee et al., 2015)."""

    def __init__(self, network: BlockwiseVGG, weight: float, generator: torch.Generator, image_size: int):
        super().__init__()
        size = head_size(network, image_size)
        self.weight = weight
        self.standardize = nn.BatchNorm1d(size, affine=False)
        self.linear = initialize(nn.Linear(size, network.classes), generator)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = self.linear(self.standardize(features.flatten(1)) / 16)
        return self.weight * functional.cross_entropy(logits, labels)


class PrototypeHead(nn.Module):
    """Pulls block 2's output towards the mean of its class, so that one image stands for all of them.

    The loss is the cross-entropy of 10 cos(f, m_c), f the flattened output and m_c the running mean of f / |f| over
    the images of class c. This is nearest class means (Mensink et al., 2013) as a loss, towards what neural collapse
    (Papyan et al., 2020; Galanti et al., 2022) brings about in the last layers. Without parameters.
    """

    SCALE, MOMENTUM = 10.0, 0.95

    def __init__(self, network: BlockwiseVGG, weight: float, image_size: int):
        super().__init__()
        self.weight = weight
        self.register_buffer("means", torch.zeros(network.classes, head_size(network, image_size)))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(features.flatten(1).float())  # (B, size)
            self.update_means(directions.detach(), labels)
            similarities = directions @ functional.normalize(self.means).T  # (B, classes)
            return self.weight * functional.cross_entropy(self.SCALE * similarities, labels)

    @torch.no_grad()
    def update_means(self, directions: Tensor, labels: Tensor) -> None:
        """Move the mean of each class in the batch towards the batch's; a class's first batch gives its mean."""
        counts = labels.bincount(minlength=len(self.means))
        sums = torch.zeros_like(self.means).index_add_(0, labels, directions)
        there = counts > 0
        of_batch = sums[there] / counts[there, None]
        is_new = ~self.means[there].any(1, keepdim=True)
        self.means[there] = torch.where(is_new, of_batch, of_batch.lerp(self.means[there], self.MOMENTUM))


def parameter_groups(model: nn.Module, recipe: TeacherRecipe) -> list[dict[str, Any]]:
    """For the optimiser: with weight decay, and without it where the recipe has none on biases and BatchNorm."""
    with_decay = [p for p in model.parameters() if recipe.decays_biases or p.ndim != 1]
    without_decay = [p for p in model.parameters() if not recipe.decays_biases and p.ndim == 1]
    return [{"params": with_decay, "weight_decay": recipe.weight_decay}, {"params": without_decay, "weight_decay": 0.0}]


def head_size(network: BlockwiseVGG, image_size: int) -> int:
    """Number of values in block 2's output: 4096 for vgg16 at 32 pixels."""
    return network.architecture.width_after(FIRST_GRAFTED - 1) * (image_size >> FIRST_GRAFTED) ** 2


def add_batchnorm(network: BlockwiseVGG) -> BlockwiseVGG:
    """Put a BatchNorm after every convolution; both take the convolution's position."""
    for block in network.features:
        for position, layer in enumerate(block):
            if isinstance(layer, nn.Conv2d):
                block[position] = nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))
    return network


@torch.no_grad()
def fold_batchnorm(network: BlockwiseVGG) -> BlockwiseVGG:
    """Fold what `add_batchnorm` added into the convolutions. In evaluation mode, the outputs stay the same."""
    for block in network.features:
        for position, layer in enumerate(block):
            if isinstance(layer, nn.Sequential):
                block[position] = nn.utils.fusion.fuse_conv_bn_eval(*layer.eval())
    return network
