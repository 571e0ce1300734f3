"""Balancing: a teacher whose block 2 has outputs of a given size, and the same logits to the last bit.

Stage 1 trains B0 with a few small Adam steps from initial weights whose size does not depend on the teacher, so the
size of block 2's output can matter (docs/teachers.md: it did for B0 on Shapes10; for students nothing was shown).
ReLU and max-pooling are positively homogeneous, f(a x) = a f(x) for a > 0. So the last convolution of block 2 (weight
and bias) can be multiplied by a and the weight of the first convolution of block 3 divided by a. A power of two
changes no digit of any number.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from data.datasets import ImageDataset
from models.architectures import FIRST_GRAFTED
from models.vgg import BlockwiseVGG, convolutions, cut

IMAGES, BATCH = 2000, 500
TARGET_RMS = 2.0  # on CIFAR10, the first teacher's student was better at 1.08 than at 0.27


@torch.no_grad()
def balance(network: BlockwiseVGG, dataset: ImageDataset, device: torch.device) -> float:
    """Bring the root mean square of block 2's output as near to TARGET_RMS as a power of two can; returns the factor.

    It is measured on some training images. The network is changed in place; its logits are not. A block whose output is
    0 everywhere, or not finite, is left as it is, and the factor is 1.
    """
    images = dataset.train().decoded().images
    chosen = np.arange(0, len(images), math.ceil(len(images) / IMAGES))  # pictures in folders come class by class
    parts = (chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH))
    batches = (torch.from_numpy(images[part]).to(device) for part in parts)
    size = output_rms(network, map(dataset.normalization, batches))
    if not 0 < size < math.inf:
        return 1.0
    factor = 2.0 ** round(math.log2(TARGET_RMS / size))
    last = convolutions(network.features[FIRST_GRAFTED - 1])[-1]
    first = convolutions(network.features[FIRST_GRAFTED])[0]
    last.weight.mul_(factor)
    last.bias.mul_(factor)
    first.weight.div_(factor)
    return factor


@torch.no_grad()
def output_rms(network: BlockwiseVGG, batches: Iterable[Tensor]) -> float:
    """Root mean square of block 2's output over all images."""
    squares, count = 0.0, 0
    for images in batches:
        features = cut(network)[:FIRST_GRAFTED](images)
        squares += features.double().square().sum().item()
        count += features.numel()
    return math.sqrt(squares / count)
