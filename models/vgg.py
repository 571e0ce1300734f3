"""Block-wise VGG: a network as a sequence of six blocks that can be sliced like a list (paper, section 3).

Blocks 0 to 4 are convolutions up to and including a max-pool; block 5 is the classifier with the flatten
before it. There is no BatchNorm in the convolution blocks and no ReLU or dropout in the classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.architectures import ARCHITECTURES, FIRST_GRAFTED, Architecture, name_of, student_of

__all__ = [  # the architectures belong to the networks: one import gives both
    "ARCHITECTURES", "FIRST_GRAFTED", "Architecture", "BlockwiseVGG", "classifier", "convolution_block", "frozen",
    "initialize", "name_of", "parameter_count", "student_of",
]  # fmt: skip


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
