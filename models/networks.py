"""Networks: a teacher and the student whose blocks are grafted into it.

To add a pair, write a function that cuts both networks into blocks, and an entry in NETWORKS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from models.architectures import ARCHITECTURES, FIRST_GRAFTED, LAST_GRAFTED, TRAINABLE, Architecture, student_of
from models.vgg import BlockwiseVGG, cut


@dataclass(frozen=True)
class Networks:
    """A teacher and its student, which are cut into the same number of blocks.

    teacher, student: make the network for a number of classes. cut: returns the blocks of either network in a sequence,
    which shares its parameters and computes what it computes. first, last: the blocks that student blocks replace; all
    others of the student are the teacher's.
    """

    name: str
    teacher: Callable[[int], nn.Module]
    student: Callable[[int], nn.Module]
    cut: Callable[[nn.Module], nn.Sequential]
    first: int
    last: int

    @property
    def grafted(self) -> range:
        """The blocks that are replaced."""
        return range(self.first, self.last + 1)


def vgg(teacher: Architecture) -> Networks:
    """A block-wise VGG and its student of half the width in blocks 3 and 4."""
    make, student = partial(BlockwiseVGG, teacher), partial(BlockwiseVGG, student_of(teacher))
    name = next((name for name, known in ARCHITECTURES.items() if known == teacher), "vgg")
    return Networks(name, make, student, cut, FIRST_GRAFTED, LAST_GRAFTED)


NETWORKS: Mapping[str, Networks] = {name: vgg(ARCHITECTURES[name]) for name in TRAINABLE}


def networks_of(teacher: BlockwiseVGG) -> Networks:
    """The networks of a teacher from a file, whose depth and widths follow from the file."""
    return vgg(teacher.architecture)


def frozen(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, without gradients. Every teacher is frozen by this function."""
    return network.eval().requires_grad_(False)


def initialize(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Kaiming normal (fan_out, relu) for convolutions, normal(0, 0.01) for linear layers, bias 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01, generator=generator)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network


@torch.no_grad()
def output_shapes(blocks: nn.Sequential, image_size: int) -> list[tuple[int, ...]]:
    """The shape of one image, then of each block's output: (3, 32, 32), (64, 16, 16), ..., (classes,).

    Read off one forward pass of the blocks, which must be in evaluation mode.
    """
    outputs = [torch.zeros(1, 3, image_size, image_size, device=next(blocks.parameters()).device)]
    for block in blocks:
        outputs.append(block(outputs[-1]))
    return [tuple(output.shape[1:]) for output in outputs]


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
