"""Exact folding: a student with adapters becomes a plain network that computes the same logits.

Linear maps that follow one another are one linear map. In a student (grafting/scions.py) these are

    s2t0, t2s0, block 4's first convolution     -> one 3x3 convolution
    s2t1, t2s1, the classifier's linear layers  -> one linear layer (on 1x1 pixels; there is nothing between them)

The first needs care. With block 3's output x (B, 256, 2, 2), the two adapters give A x + a at every pixel, and the
convolution then pads with *zeros*. Its kernel K and bias b see the constant a only where they lie on the image:

    K * (A x + a) + b  =  (K A) * x  +  (K * a + b),        * a convolution that pads with zeros

K A is a kernel again. K * a + b does not depend on x, but on the place: it is a bias map (256, 2, 2). On 2x2 pixels
every pixel lies at the border, so one bias for all of them is wrong everywhere.

Another exact way pads x with p, where A p + a = 0. It suits every size of image, but needs the inverse of A, which may
not exist (condition number 2,900 in a trained student). The bias map needs no inverse, and the size is known: the
linear layer behind block 4 takes images of 32x32 only.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.views import CIFAR_SIZE
from grafting.teacher import FrozenTeacher
from models.architectures import FIRST_GRAFTED, student_of
from models.networks import frozen
from models.vgg import convolution_block

FOLDED_BLOCK = FIRST_GRAFTED + 1  # its first convolution takes in the adapters in front of it
SIDE = CIFAR_SIZE >> FOLDED_BLOCK  # pixels on each side in front of it: 2

Widths = tuple[tuple[int, ...], ...]
AffineMap = tuple[Tensor, Tensor]  # matrix (out, in) and vector (out,), in float64


class FoldedStudent(nn.Module):
    """A plain network: the teacher's blocks 0 to 2, blocks 3 and 4 of half the width, one linear layer.

    widths: output channels of every convolution, block by block. Normalisation is inside.
    """

    def __init__(self, widths: Widths, classes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))  # of the pixels' values, 0 to 255
        self.register_buffer("std", torch.ones(3, 1, 1))
        inputs = (3, *(block[-1] for block in widths[:-1]))
        self.blocks = nn.Sequential(*(convolution_block(c, w) for c, w in zip(inputs, widths, strict=True)))
        for block in self.blocks:  # max-pool before ReLU: the same result, a quarter of ReLU's work
            block[-2], block[-1] = block[-1], block[-2]
        self.blocks[FOLDED_BLOCK][0] = ConvolutionWithBiasMap(inputs[FOLDED_BLOCK], widths[FOLDED_BLOCK][0], SIDE)
        self.linear = nn.Linear(widths[-1][-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, 32, 32) uint8, RGB -> logits (B, classes), in the dtype of the weights."""
        return self.linear(self.blocks((images.to(self.mean.dtype) - self.mean) / self.std).flatten(1))

    @torch.no_grad()
    def divide_logits(self, temperature: float) -> None:
        """Divide the logits by the temperature, within the linear layer."""
        self.linear.weight.div_(temperature)
        self.linear.bias.div_(temperature)


class ConvolutionWithBiasMap(nn.Module):
    """A 3x3 convolution with a bias for each pixel: (B, channels, side, side) -> (B, width, side, side)."""

    def __init__(self, channels: int, width: int, side: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, 3, 3))
        self.bias_map = nn.Parameter(torch.empty(width, side, side))

    def forward(self, features: Tensor) -> Tensor:
        return functional.conv2d(features, self.weight, padding=1) + self.bias_map


@torch.no_grad()
def fold(teacher: FrozenTeacher, scions: Iterable[nn.Sequential]) -> FoldedStudent:
    """The plain network that computes what the graft of [B0, B1, B2] into this VGG computes, up to rounding.

    Products of weights are computed in float64. The result is frozen, and a copy: it shares no memory with its sources.
    """
    (block3, s2t0), (t2s0, block4, s2t1), (t2s1, (_, classifier)) = scions
    network = FoldedStudent(student_of(teacher.network.architecture).widths, teacher.classes)
    network.mean.copy_(255 * torch.tensor(teacher.normalization.mean)[:, None, None])
    network.std.copy_(255 * torch.tensor(teacher.normalization.std)[:, None, None])
    for folded, block in zip(network.blocks, (*teacher.blocks[:FIRST_GRAFTED], block3, block4), strict=True):
        for target, layer in zip(folded, block, strict=True):
            if isinstance(target, nn.Conv2d):
                target.load_state_dict(layer.state_dict())
    kernel, bias_map = convolution_behind(in_sequence(s2t0, t2s0), block4[0])
    network.blocks[FOLDED_BLOCK][0].weight.copy_(kernel)
    network.blocks[FOLDED_BLOCK][0].bias_map.copy_(bias_map)
    matrix, vector = in_sequence(s2t1, t2s1, *classifier)
    network.linear.weight.copy_(matrix)
    network.linear.bias.copy_(vector)
    return frozen(network).to(memory_format=torch.channels_last)  # the fastest on a CPU


def in_sequence(*layers: nn.Conv2d | nn.Linear) -> AffineMap:
    """The 1x1 convolutions or linear layers, one behind the other, as one map."""
    matrix, vector = affine_map(layers[0])
    for layer in layers[1:]:
        next_matrix, next_vector = affine_map(layer)
        matrix, vector = next_matrix @ matrix, next_matrix @ vector + next_vector
    return matrix, vector


def affine_map(layer: nn.Conv2d | nn.Linear) -> AffineMap:
    return layer.weight.detach().flatten(1).double(), layer.bias.detach().double()


def convolution_behind(adapters: AffineMap, convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Kernel K A (out, in, 3, 3) and bias map K * a + b (out, 2, 2) of a convolution (K, b) behind A x + a."""
    matrix, vector = adapters
    kernel, bias = convolution.weight.double(), convolution.bias.double()
    constant = vector[None, :, None, None].expand(1, -1, SIDE, SIDE)
    bias_map = functional.conv2d(constant, kernel, bias, padding=1)[0]
    return torch.einsum("ocuv,ci->oiuv", kernel, matrix), bias_map
