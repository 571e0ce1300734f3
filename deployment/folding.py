"""Exact folding: a student with adapters becomes a plain network that computes the same logits.

Linear maps that follow one another are one linear map. In a student (grafting/scions.py) these are

    s2t0, t2s0, block 4's first convolution     -> one 3x3 convolution
    s2t1, t2s1, the classifier's linear layers  -> one linear layer (on 1x1 pixels; there is nothing between them)

The first needs care. With block 3's output x (B, 256, 2, 2), the two adapters give A x + a at every pixel, and the
convolution then pads with *zeros*. Its kernel K and bias b see the constant a only where they lie on the image:

    K * (A x + a) + b  =  (K A) * x  +  (K * a + b),        * a convolution that pads with zeros

K A is a kernel again. K * a + b does not depend on x, but on the place: it is a bias map (256, 2, 2). On 2x2 pixels
every pixel lies at the border, so one bias for all of them is wrong everywhere.
"""

from collections.abc import Iterable, Sequence

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

Widths = Sequence[Sequence[int]]  # output channels of every convolution, block by block


class FoldedStudent(nn.Module):
    """A plain network: the teacher's blocks 0 to 2, blocks 3 and 4 of half the width, one linear layer.

    Normalisation is inside.
    """

    def __init__(self, widths: Widths, classes: int):
        super().__init__()
        self.widths = widths
        self.register_buffer("mean", torch.zeros(3, 1, 1))  # of the pixels' values, 0 to 255
        self.register_buffer("std", torch.ones(3, 1, 1))
        inputs = (3, *(block[-1] for block in widths[:-1]))
        self.blocks = nn.Sequential(*(convolution_block(c, w) for c, w in zip(inputs, widths, strict=True)))
        for block in self.blocks:  # max-pool before ReLU: the same result, a quarter of ReLU's work
            block[-2], block[-1] = block[-1], block[-2]
        self.blocks[FOLDED_BLOCK][0] = ConvolutionWithBiasMap(inputs[FOLDED_BLOCK], widths[FOLDED_BLOCK][0])
        self.linear = nn.Linear(widths[-1][-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, 32, 32) uint8, RGB -> logits (B, classes), in the dtype of the weights."""
        return self.linear(self.blocks((images.to(self.mean.dtype) - self.mean) / self.std).flatten(1))


class ConvolutionWithBiasMap(nn.Module):
    """A 3x3 convolution with a bias for each pixel: (B, channels, 2, 2) -> (B, width, 2, 2)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, 3, 3))
        self.bias_map = nn.Parameter(torch.empty(width, SIDE, SIDE))

    def forward(self, features: Tensor) -> Tensor:
        return functional.conv2d(features, self.weight, padding=1) + self.bias_map


@torch.no_grad()
def fold(teacher: FrozenTeacher, scions: Iterable[nn.Sequential], temperature: float = 1.0) -> FoldedStudent:
    """The plain network that computes the logits of the graft of [B0, B1, B2] into this VGG, over the temperature.

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
    matrix, vector = in_sequence(s2t0, t2s0)
    kernel, bias = block4[0].weight.double(), block4[0].bias.double()
    constant = vector[None, :, None, None].expand(1, -1, SIDE, SIDE)
    merged = network.blocks[FOLDED_BLOCK][0]
    merged.weight.copy_(torch.einsum("ocuv,ci->oiuv", kernel, matrix))
    merged.bias_map.copy_(functional.conv2d(constant, kernel, bias, padding=1)[0])
    matrix, vector = in_sequence(s2t1, t2s1, *classifier)
    network.linear.weight.copy_(matrix).div_(temperature)
    network.linear.bias.copy_(vector).div_(temperature)
    return frozen(network).to(memory_format=torch.channels_last)  # the fastest on a CPU


def in_sequence(*layers: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """1x1 convolutions or linear layers, one behind the other, as one map: matrix (out, in), vector (out,), float64."""
    (matrix, vector), *others = [(layer.weight.flatten(1).double(), layer.bias.double()) for layer in layers]
    for next_matrix, next_vector in others:
        matrix, vector = next_matrix @ matrix, next_matrix @ vector + next_vector
    return matrix, vector
