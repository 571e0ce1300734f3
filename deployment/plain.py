"""A student as one network on raw images: a VGG's is folded, others are their blocks with all that belongs to them."""

import copy

import torch
from torch import Tensor, nn

from data.views import Normalization
from deployment.folding import fold
from grafting.teacher import FrozenTeacher
from models.networks import frozen


class RawStudent(nn.Module):
    """Normalisation, a student's blocks, and the temperature of its logits."""

    def __init__(self, blocks: nn.Sequential):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))  # of the pixels' values, 0 to 255
        self.register_buffer("std", torch.ones(3, 1, 1))
        self.register_buffer("temperature", torch.ones(()))
        self.blocks = blocks

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) uint8, RGB -> logits (B, classes)."""
        return self.blocks((images.to(self.mean.dtype) - self.mean) / self.std) / self.temperature

    def set(self, normalization: Normalization, temperature: float) -> None:
        self.mean.copy_(255 * torch.tensor(normalization.mean)[:, None, None])
        self.std.copy_(255 * torch.tensor(normalization.std)[:, None, None])
        self.temperature.fill_(temperature)


def deployed(teacher: FrozenTeacher, student: nn.Sequential, temperature: float = 1.0) -> nn.Module:
    """The whole student on raw images, a frozen copy on the CPU. student: of normalised images.

    A VGG's is folded (deployment/folding.py).
    """
    networks = teacher.networks
    if networks.is_vgg:
        return fold(teacher, student[networks.first : networks.last + 1], temperature)
    network = RawStudent(copy.deepcopy(student).cpu())
    network.set(teacher.normalization, temperature)
    return frozen(network).to(memory_format=torch.channels_last)
