"""Block-wise VGG: a network as a sequence of six blocks that can be sliced like a list (paper, section 3).

Blocks 0 to 4 are convolutions up to and including a max-pool; block 5 is the classifier with the flatten
before it. There is no BatchNorm in the convolution blocks and no ReLU or dropout in the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

FIRST_GRAFTED = 3  # the student uses the teacher's blocks 0 to 2


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one block-wise VGG from another.

    widths: output channels of every convolution, block by block.
    hidden: width of the classifier's first linear layer.
    batchnorm: whether a BatchNorm1d is between the classifier's two linear layers (teachers only).
    """

    widths: tuple[tuple[int, ...], ...]
    hidden: int = 512
    batchnorm: bool = True

    def width_after(self, block: int) -> int:
        """Output channels of `block`."""
        return self.widths[block][-1]


def _vgg(*convolutions: int, widths: tuple[int, ...] = (64, 128, 256, 512, 512), hidden: int = 512) -> Architecture:
    return Architecture(tuple((w,) * n for w, n in zip(widths, convolutions, strict=True)), hidden)


ARCHITECTURES = {
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "vgg11-small": _vgg(1, 1, 2, 2, 2, widths=(16, 32, 64, 128, 128), hidden=128),
}


def student_of(teacher: Architecture) -> Architecture:
    """The student of a teacher: blocks 3 and 4 at half the width, no BatchNorm in the classifier."""
    shared, grafted = teacher.widths[:FIRST_GRAFTED], teacher.widths[FIRST_GRAFTED:]
    halved = tuple(tuple(width // 2 for width in block) for block in grafted)
    return replace(teacher, widths=shared + halved, batchnorm=False)


ARCHITECTURES["vgg16-graft"] = student_of(ARCHITECTURES["vgg16"])


def name_of(architecture: Architecture) -> str:
    """The name in ARCHITECTURES, or "vgg" for any other network."""
    return next((name for name, known in ARCHITECTURES.items() if known == architecture), "vgg")


def convolution_block(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions with ReLU, then a max-pool: (B, channels, H, W) -> (B, widths[-1], H/2, W/2)."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def classifier(architecture: Architecture, classes: int) -> nn.Sequential:
    """(B, width) -> (B, classes). The student's two linear layers have nothing between them."""
    hidden = architecture.hidden
    between = [nn.BatchNorm1d(hidden)] if architecture.batchnorm else []
    return nn.Sequential(nn.Linear(architecture.width_after(-1), hidden), *between, nn.Linear(hidden, classes))


class BlockwiseVGG(nn.Module):
    """A VGG whose blocks can be sliced: `net[:3]` is blocks 0 to 2, `net[5:]` flatten and classifier.

    A slice is an `nn.Sequential` that shares the network's parameters; an empty slice is the identity.
    State keys are those of the released files: `features.<block>.<position>.*` and `classifier.<position>.*`.
    """

    def __init__(self, architecture: Architecture, classes: int):
        super().__init__()
        inputs = (3, *(block[-1] for block in architecture.widths[:-1]))
        self.architecture = architecture
        self.classes = classes
        self.features = nn.Sequential(
            *(convolution_block(c, w) for c, w in zip(inputs, architecture.widths, strict=True))
        )
        self.classifier = classifier(architecture, classes)

    def __getitem__(self, span: slice) -> nn.Sequential:
        blocks = [*self.features, nn.Sequential(nn.Flatten(), self.classifier)]
        return nn.Sequential(*blocks[span])

    def __len__(self) -> int:
        return len(self.features) + 1

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, 32, 32) normalised -> logits (B, classes)."""
        return self[:](images)


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
        nn.init.zeros_(layer.bias)
    return network


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
