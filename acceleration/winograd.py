"""Networks on feature maps of 4x4 pixels or fewer as large matrix products (Lavin and Gray, CVPR 2016).

Winograd's algorithm computes a 3x3 convolution with fewer multiplications than its definition: y = A ((G k) * (B x)),
with constant matrices A, G, B over the pixels and * element by element. With the sum over input channels, each element
of G k becomes a matrix product over channels, for all images at once. The result is the network's up to rounding.
Feature maps are laid out as (pixels, B, channels), which gives every product and every gradient contiguous operands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# images from which on transforming the kernels of a layer in training takes less time than the multiplications that it
# saves (python -m benchmarks.steps, docs/speed.md)
WINOGRAD_FROM = 32
# (A, 24 G, B) for y[i] = k[0] x[i-1] + k[1] x[i] + k[2] x[i+1] on n pixels with zero padding
ALGORITHMS = {
    4: (  # F(4, 3) of the paper, without the columns of B that would multiply the padding
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
        [[0, -5, 0, 1], [-4, -4, 1, 1], [4, -4, -1, 1], [-2, -1, 2, 1], [2, -1, -2, 1], [4, 0, -5, 0]],
    ),
    2: ([[1, 1, 0], [1, 0, 1]], [[0, 24, 0], [0, -24, 24], [24, -24, 0]], [[1, 1], [0, 1], [1, 0]]),
}


def as_matrix_products(network: nn.Module, side: int) -> nn.Sequential:
    """The network, for maps (B, C, side, side) -> maps or, if it flattens them, (B, C'), in evaluation mode.

    It may consist of 3x3 convolutions (padding 1) of 4x4 or 2x2 pixels, 1x1 convolutions, ReLU, 2x2 max-pools, flatten,
    linear layers and BatchNorm1d; side is 4, 2 or 1, and maps that are flattened have one pixel. Layers that require
    gradients share their weights with the result and are trained through it. All others (under `torch.no_grad`, every
    layer) must not change afterwards: their kernels are transformed once, and linear ones that follow one another
    become one. Raises TypeError for anything else.
    """
    layers: list[nn.Module] = [ToRows()]
    flattens = False
    for _, layer in network.named_modules(remove_duplicate=False):  # a layer that occurs twice is used twice
        require_product(layer, side)
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layers.append(Convolution(layer, side))
        elif isinstance(layer, nn.ReLU):
            layers.append(nn.ReLU(inplace=True))
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(MaxPool())
            side //= 2
        elif isinstance(layer, nn.Conv2d | nn.Linear) and is_trained(layer):
            layers.append(TrainedAffine(layer))
        elif isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm1d):
            affine = Affine(*weight_and_bias(layer))
            layers.append(layers.pop().then(affine) if isinstance(layers[-1], Affine) else affine)
        elif isinstance(layer, nn.Flatten):
            flattens = True
    return nn.Sequential(*layers, nn.Flatten(0, 1) if flattens else ToMaps())  # (1, B, C) -> (B, C)


def products_or_itself(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The network as matrix products, for features of this shape (C, H, W); itself where it has no such form."""
    try:
        return as_matrix_products(network, shape[-1]) if shape[1:] in {(4, 4), (2, 2), (1, 1)} else network
    except TypeError:
        return network


def require_product(layer: nn.Module, side: int) -> None:
    """Raise TypeError for a layer that has no form as matrix products on maps of side x side pixels."""
    if isinstance(layer, nn.Conv2d):
        usual = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
        kernel = (layer.kernel_size, layer.padding)
        fits = kernel == ((1, 1), (0, 0)) or (kernel == ((3, 3), (1, 1)) and side in ALGORITHMS)
        has_form = usual and fits and layer.bias is not None
    elif isinstance(layer, nn.MaxPool2d):
        usual = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode) == (2, 2, 0, 1, False)
        has_form = usual and side % 2 == 0
    elif isinstance(layer, nn.BatchNorm1d):
        has_form = layer.affine and layer.track_running_stats and not (is_trained(layer) or layer.training)
    elif isinstance(layer, nn.Linear):
        has_form = layer.bias is not None and side == 1
    elif isinstance(layer, nn.Flatten):
        has_form = (layer.start_dim, layer.end_dim, side) == (1, -1, 1)
    else:
        has_form = isinstance(layer, nn.ReLU | nn.Sequential | nn.Identity)
    if not has_form:
        raise TypeError(f"{layer} has no form as matrix products on {side}x{side} pixels")


def is_trained(layer: nn.Module) -> bool:
    """Whether gradients of its weight are computed now."""
    return torch.is_grad_enabled() and layer.weight.requires_grad


class ToRows(nn.Module):
    """(B, C, H, W) -> (H * W, B, C)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(2, 3, 0, 1).flatten(0, 1)


class ToMaps(nn.Module):
    """(side * side, B, C) -> (B, C, side, side)."""

    def forward(self, rows: Tensor) -> Tensor:
        side = math.isqrt(len(rows))
        return rows.unflatten(0, (side, side)).permute(2, 3, 0, 1)


class MaxPool(nn.Module):
    """Largest of 2x2 pixels: (4 n, B, C) -> (n, B, C). Several largest pixels share the gradient.

    Behind a ReLU these are in practice zeros, which pass no gradient on.
    """

    def forward(self, rows: Tensor) -> Tensor:
        side = math.isqrt(len(rows))
        upper, lower = rows.unflatten(0, (side // 2, 2, side)).unbind(1)
        left, right = torch.maximum(upper, lower).unflatten(1, (side // 2, 2)).unbind(2)
        return torch.maximum(left, right).flatten(0, 1)


class Convolution(nn.Module):
    """A 3x3 convolution with zero padding: (side * side, B, C) -> (side * side, B, C').

    A layer in training transforms its kernels at every forward pass; in batches below WINOGRAD_FROM it is one product
    over the neighbours of each pixel instead. The choice depends on the batch's size alone, so that a resumed run
    computes the same numbers. The kernels of other layers are transformed once.
    """

    def __init__(self, layer: nn.Conv2d, side: int):
        super().__init__()
        a, g, b = (torch.tensor(matrix, dtype=torch.float32, device=layer.weight.device) for matrix in ALGORITHMS[side])
        self.register_buffer("into", torch.kron(b, b))
        self.register_buffer("out_of", torch.kron(a, a))
        self.register_buffer("of_kernels", torch.kron(g / 24, g / 24))
        self.layer = layer if is_trained(layer) else None
        if self.layer is None:
            self.register_buffer("kernels", self.transformed(layer.weight.detach()).contiguous())
            self.register_buffer("bias", layer.bias.detach())
        else:
            self.register_buffer("neighbours", neighbours(side).to(layer.weight.device))

    def transformed(self, weight: Tensor) -> Tensor:
        """(C', C, 3, 3) -> (pixels of the transform, C, C')."""
        by_input = weight.permute(1, 2, 3, 0).flatten(1, 2)  # (C, 9, C')
        return (self.of_kernels @ by_input).permute(1, 0, 2)

    def forward(self, rows: Tensor) -> Tensor:
        if self.layer is None:
            kernels, bias = self.kernels, self.bias
        elif rows.shape[1] < WINOGRAD_FROM:
            return self.over_neighbours(rows)
        else:
            kernels, bias = self.transformed(self.layer.weight), self.layer.bias
        return across_pixels(self.out_of, across_pixels(self.into, rows) @ kernels).add_(bias)

    def over_neighbours(self, rows: Tensor) -> Tensor:
        padded = functional.pad(rows, (0, 0, 0, 0, 0, 1))  # a last pixel of zeros
        gathered = padded.index_select(0, self.neighbours.flatten()).unflatten(0, self.neighbours.shape)
        return functional.linear(gathered.permute(0, 2, 3, 1).flatten(2), self.layer.weight.flatten(1), self.layer.bias)


class TrainedAffine(nn.Module):
    """A 1x1 convolution or linear layer in training: (pixels, B, C) -> (pixels, B, C')."""

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.layer.weight.flatten(1), self.layer.bias)


class Affine(nn.Module):
    """The same affine map for every pixel: (pixels, B, C) -> (pixels, B, C')."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight, self.bias)

    def then(self, after: Affine) -> Affine:
        """This layer and then `after`, as one layer."""
        return Affine(after.weight @ self.weight, after(self.bias))


def weight_and_bias(layer: nn.Conv2d | nn.Linear | nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight (C', C) and bias (C',) of a layer that is the same for every pixel."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if isinstance(layer, nn.BatchNorm1d):
        scale = weight / (layer.running_var + layer.eps).sqrt()
        return scale.diag(), bias - layer.running_mean * scale
    return weight.flatten(1), bias


def across_pixels(matrix: Tensor, rows: Tensor) -> Tensor:
    """(n, m) applied to (m, B, C) -> (n, B, C)."""
    return (matrix @ rows.flatten(1)).unflatten(1, rows.shape[1:])


def neighbours(side: int) -> Tensor:
    """The indices (side * side, 9) of the 3x3 pixels around each pixel; side * side stands for the padding."""
    pixels = torch.arange(side * side).view(side, side)
    padded = functional.pad(pixels, (1, 1, 1, 1), value=side * side)
    return padded.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2).flatten(0, 1)
