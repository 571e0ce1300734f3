"""Networks on feature maps of 4x4 pixels or fewer as large matrix products (Lavin and Gray, CVPR 2016).

Winograd's algorithm computes a 3x3 convolution with fewer multiplications than its definition: y = A ((G k) * (B x)),
with constant matrices A, G, B over the pixels and * element by element. With the sum over input channels, each element
of G k becomes a matrix product over channels, for all images at once. The result is the network's up to rounding.
Feature maps are laid out as (pixels, B, channels).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
    or 1. Linear layers that follow one another become one. The weights are copied.
    """
    layers: list[nn.Module] = [ToRows()]
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layers.append(Convolution(layer, side))
        elif isinstance(layer, nn.ReLU):
            layers.append(layer)
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(MaxPool())
            side //= 2
        elif isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm1d):
            affine = Affine(*weight_and_bias(layer))
            layers.append(layers.pop().then(affine) if isinstance(layers[-1], Affine) else affine)
    return nn.Sequential(*layers, OnlyPixel())


class ToRows(nn.Module):
    """(B, C, H, W) -> (H * W, B, C)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(2, 3, 0, 1).flatten(0, 1)


class OnlyPixel(nn.Module):
    """(1, B, C) -> (B, C)."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.squeeze(0)


class MaxPool(nn.Module):
    """Largest of 2x2 pixels: (4 n, B, C) -> (n, B, C)."""

    def forward(self, rows: Tensor) -> Tensor:
        side = round(len(rows) ** 0.5)
        upper, lower = rows.unflatten(0, (side // 2, 2, side)).unbind(1)
        left, right = torch.maximum(upper, lower).unflatten(1, (side // 2, 2)).unbind(2)
        return torch.maximum(left, right).flatten(0, 1)


class Convolution(nn.Module):
    """A 3x3 convolution with zero padding: (side * side, B, C) -> (side * side, B, C')."""

    def __init__(self, layer: nn.Conv2d, side: int):
        super().__init__()
        a, g, b = (torch.tensor(matrix, dtype=torch.float32, device=layer.weight.device) for matrix in ALGORITHMS[side])
        kernels = layer.weight.detach().permute(2, 3, 1, 0)  # (3, 3, C, C')
        self.register_buffer("weight", torch.einsum("pi,qj,ijcd->pqcd", g / 24, g / 24, kernels).flatten(0, 1))
        self.register_buffer("bias", layer.bias.detach())
        self.register_buffer("into", torch.kron(b, b))
        self.register_buffer("out_of", torch.kron(a, a))

    def forward(self, rows: Tensor) -> Tensor:
        products = across_pixels(self.into, rows) @ self.weight
        return across_pixels(self.out_of, products).add_(self.bias)


class Affine(nn.Module):
    """The same affine map for every pixel: (pixels, B, C) -> (pixels, B, C')."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight + self.bias

    def then(self, after: Affine) -> Affine:
        """This layer and then `after`, as one layer."""
        return Affine(self.weight @ after.weight, after(self.bias))


def weight_and_bias(layer: nn.Conv2d | nn.Linear | nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight (C, C') and bias (C',) of a layer that is the same for every pixel."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if isinstance(layer, nn.BatchNorm1d):
        scale = weight / (layer.running_var + layer.eps).sqrt()
        return scale.diag(), bias - layer.running_mean * scale
    return weight.flatten(1).T, bias


def across_pixels(matrix: Tensor, rows: Tensor) -> Tensor:
    """(n, m) applied to (m, B, C) -> (n, B, C)."""
    return (matrix @ rows.flatten(1)).unflatten(1, rows.shape[1:])
