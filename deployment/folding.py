"""Exact folding: a student with adapters becomes a plain network that computes the same logits.

Linear maps that follow one another are one linear map. In a student (grafting/scions.py) whose blocks 3 to 5 are
grafted, these are

    s2t0, t2s0, block 4's first convolution     -> one 3x3 convolution
    s2t1, t2s1, the classifier's linear layers  -> one linear layer (on 1x1 pixels; there is nothing between them)

and likewise where other blocks are. The first needs care. With block 3's output x (B, 256, 2, 2), the two adapters
give A x + a at every pixel, and the convolution then pads with *zeros*. Its kernel K and bias b see the constant a only
where they lie on the image:

    K * (A x + a) + b  =  (K A) * x  +  (K * a + b),        * a convolution that pads with zeros

K A is a kernel again. K * a + b does not depend on x, but on the place: it is a bias map (256, 2, 2). On 2x2 pixels
every pixel lies at the border, so one bias for all of them is wrong everywhere.
"""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.views import CIFAR_SIZE
from grafting.scions import Adapter
from grafting.students import layers_of
from grafting.teacher import FrozenTeacher
from models.architectures import CLASSIFIER, FIRST_GRAFTED
from models.networks import frozen
from models.vgg import convolution_block, convolutions, linear_layers

USUALLY_FOLDED = (FIRST_GRAFTED + 1,)  # the blocks whose first convolution takes in adapters, if 3 to 5 are grafted

Widths = Sequence[Sequence[int]]  # output channels of every convolution, block by block


class FoldedStudent(nn.Module):
    """A plain VGG with one linear layer. Normalisation is inside.

    folded: the blocks whose first convolution has taken in the adapters in front of it. image_size: pixels on each
    side.
    """

    def __init__(
        self, widths: Widths, classes: int, folded: Collection[int] = USUALLY_FOLDED, image_size: int = CIFAR_SIZE
    ):
        super().__init__()
        self.widths, self.folded = widths, tuple(folded)
        self.register_buffer("mean", torch.zeros(3, 1, 1))  # of the pixels' values, 0 to 255
        self.register_buffer("std", torch.ones(3, 1, 1))
        inputs = (3, *(block[-1] for block in widths[:-1]))
        self.blocks = nn.Sequential(*(convolution_block(c, w) for c, w in zip(inputs, widths, strict=True)))
        for block in self.blocks:  # max-pool before ReLU: the same result, a quarter of ReLU's work
            block[-2], block[-1] = block[-1], block[-2]
        for block in folded:
            self.blocks[block][0] = ConvolutionWithBiasMap(inputs[block], widths[block][0], image_size >> block)
        self.linear = nn.Linear(widths[-1][-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, 32, 32) uint8, RGB -> logits (B, classes), in the dtype of the weights."""
        return self.linear(self.blocks((images.to(self.mean.dtype) - self.mean) / self.std).flatten(1))


class ConvolutionWithBiasMap(nn.Module):
    """A 3x3 convolution with a bias for each pixel: (B, channels, side, side) -> (B, width, side, side)."""

    def __init__(self, channels: int, width: int, side: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, 3, 3))
        self.bias_map = nn.Parameter(torch.empty(width, side, side))

    def forward(self, features: Tensor) -> Tensor:
        return functional.conv2d(features, self.weight, padding=1) + self.bias_map


@torch.no_grad()
def fold(teacher: FrozenTeacher, scions: Iterable[nn.Sequential], temperature: float = 1.0) -> FoldedStudent:
    """The plain network that computes the logits of the graft of scions into this VGG, over the temperature.

    Products of weights are computed in float64. The result is frozen, and a copy: it shares no memory with its sources.
    """
    blocks, adapters = in_parts(teacher, scions)
    layers_of_block = [convolutions(block) for block in blocks[:CLASSIFIER]]
    widths = [[layer.out_channels for layer in layers] for layers in layers_of_block]
    folded = tuple(number for number in range(CLASSIFIER) if adapters[number])
    network = FoldedStudent(widths, teacher.classes, folded, teacher.image_size)
    network.mean.copy_(255 * torch.tensor(teacher.normalization.mean)[:, None, None])
    network.std.copy_(255 * torch.tensor(teacher.normalization.std)[:, None, None])
    for number, layers in enumerate(layers_of_block):
        targets = [layer for layer in network.blocks[number] if isinstance(layer, nn.Conv2d | ConvolutionWithBiasMap)]
        for target, layer in zip(targets, layers, strict=True):
            if isinstance(target, nn.Conv2d):
                target.load_state_dict(layer.state_dict())
            else:
                merge(target, layer, *in_sequence(*adapters[number]))
    matrix, vector = in_sequence(*adapters[CLASSIFIER], *linear_layers(blocks[CLASSIFIER][1]))
    network.linear.weight.copy_(matrix).div_(temperature)
    network.linear.bias.copy_(vector).div_(temperature)
    return frozen(network).to(memory_format=torch.channels_last)  # the fastest on a CPU


def in_parts(teacher: FrozenTeacher, scions: Iterable[nn.Sequential]) -> tuple[list[nn.Module], list[list[Adapter]]]:
    """The student's six blocks, and the adapters in front of each of them."""
    blocks, adapters = [], [[]]
    for layer in layers_of(teacher.networks, teacher.blocks, scions):
        if isinstance(layer, Adapter):
            adapters[-1].append(layer)
        else:
            blocks.append(layer)
            adapters.append([])
    return blocks, adapters


def merge(target: ConvolutionWithBiasMap, layer: nn.Conv2d, matrix: Tensor, vector: Tensor) -> None:
    """Put an affine map of channels in front of a convolution into it."""
    kernel, bias, side = layer.weight.double(), layer.bias.double(), target.bias_map.shape[-1]
    constant = vector[None, :, None, None].expand(1, -1, side, side)
    target.weight.copy_(torch.einsum("ocuv,ci->oiuv", kernel, matrix))
    target.bias_map.copy_(functional.conv2d(constant, kernel, bias, padding=1)[0])


def in_sequence(*layers: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """1x1 convolutions or linear layers, one behind the other, as one map: matrix (out, in), vector (out,), float64."""
    (matrix, vector), *others = [(layer.weight.flatten(1).double(), layer.bias.double()) for layer in layers]
    for next_matrix, next_vector in others:
        matrix, vector = next_matrix @ matrix, next_matrix @ vector + next_vector
    return matrix, vector
