"""Networks on feature maps of 4x4 pixels or fewer as large matrix products (Lavin and Gray, CVPR 2016).

Winograd's algorithm computes a 3x3 convolution with fewer multiplications than its definition: y = A ((G k) * (B x)),
with constant matrices A, G, B over the pixels and * element by element. With the sum over input channels, each element
of G k becomes a matrix product over channels, for all images at once. The result is the network's up to rounding.
Feature maps are laid out as (pixels, channels, B), which gives every product and every gradient contiguous operands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PRODUCTS_FROM = 16  # images; where both take the same time (python -m benchmarks.steps, docs/speed.md)
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
    """The network, for maps (B, C, side, side) -> (B, classes), in evaluation mode.

    It may consist of 3x3 and 1x1 convolutions, ReLU, max-pools, flatten, linear layers and BatchNorm1d; side is 4, 2
    or 1. Layers that require gradients share their weights with the result and are trained through it. All other
    weights are copied here and transformed once; under `torch.no_grad` that is every layer. Copied linear layers that
    follow one another become one.
    """
    layers: list[nn.Module] = [ToColumns()]
    for layer in network.modules():
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
    return nn.Sequential(*layers, OnlyPixel())


class LargeBatchProducts(nn.Module):
    """A network in training, as matrix products in batches of PRODUCTS_FROM images or more and as it is in others.

    Below that, transforming the kernels takes longer than the multiplications that it saves. The choice depends on the
    batch's size alone, so that a resumed run computes the same numbers.
    """

    def __init__(self, network: nn.Module, side: int):
        super().__init__()
        self.network = network
        self.products = as_matrix_products(network, side)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, side, side) -> (B, classes)."""
        return self.products(maps) if len(maps) >= PRODUCTS_FROM else self.network(maps)


def is_trained(layer: nn.Module) -> bool:
    """Whether gradients of its weight are computed now."""
    return torch.is_grad_enabled() and layer.weight.requires_grad


class ToColumns(nn.Module):
    """(B, C, H, W) -> (H * W, C, B)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(2, 3, 1, 0).flatten(0, 1)


class OnlyPixel(nn.Module):
    """(1, C, B) -> (B, C)."""

    def forward(self, columns: Tensor) -> Tensor:
        return columns.squeeze(0).T


class MaxPool(nn.Module):
    """Largest of 2x2 pixels: (4 n, C, B) -> (n, C, B). Several largest pixels share the gradient.

    Behind a ReLU these are in practice zeros, which pass no gradient on.
    """

    def forward(self, columns: Tensor) -> Tensor:
        side = round(len(columns) ** 0.5)
        upper, lower = columns.unflatten(0, (side // 2, 2, side)).unbind(1)
        left, right = torch.maximum(upper, lower).unflatten(1, (side // 2, 2)).unbind(2)
        return torch.maximum(left, right).flatten(0, 1)


class Convolution(nn.Module):
    """A 3x3 convolution with zero padding: (side * side, C, B) -> (side * side, C', B).

    The kernels of a layer in training are transformed at every forward pass, those of others once.
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
            self.register_buffer("bias", layer.bias.detach()[:, None])

    def transformed(self, weight: Tensor) -> Tensor:
        """(C', C, 3, 3) -> (pixels of the transform, C', C)."""
        by_output = weight.permute(0, 2, 3, 1).flatten(1, 2)  # (C', 9, C)
        return (self.of_kernels @ by_output).permute(1, 0, 2)

    def forward(self, columns: Tensor) -> Tensor:
        if self.layer is None:
            kernels, bias = self.kernels, self.bias
        else:
            kernels, bias = self.transformed(self.layer.weight), self.layer.bias[:, None]
        return across_pixels(self.out_of, kernels @ across_pixels(self.into, columns)).add_(bias)


class TrainedAffine(nn.Module):
    """A 1x1 convolution or linear layer in training: (pixels, C, B) -> (pixels, C', B)."""

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, columns: Tensor) -> Tensor:
        return self.layer.weight.flatten(1) @ columns + self.layer.bias[:, None]


class Affine(nn.Module):
    """The same affine map for every pixel: (pixels, C, B) -> (pixels, C', B)."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias[:, None])

    def forward(self, columns: Tensor) -> Tensor:
        return self.weight @ columns + self.bias

    def then(self, after: Affine) -> Affine:
        """This layer and then `after`, as one layer."""
        return Affine(after.weight @ self.weight, after(self.bias)[:, 0])


def weight_and_bias(layer: nn.Conv2d | nn.Linear | nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight (C', C) and bias (C',) of a layer that is the same for every pixel."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if isinstance(layer, nn.BatchNorm1d):
        scale = weight / (layer.running_var + layer.eps).sqrt()
        return scale.diag(), bias - layer.running_mean * scale
    return weight.flatten(1), bias


def across_pixels(matrix: Tensor, columns: Tensor) -> Tensor:
    """(n, m) applied to (m, C, B) -> (n, C, B)."""
    return (matrix @ columns.flatten(1)).unflatten(1, columns.shape[1:])
