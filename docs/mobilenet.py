"""A MobileNetV2 and one of half its width, for --networks docs/mobilenet.py (docs/networks.md)."""

import torch
from torch import nn
from torchvision.models import mobilenet_v2

GRAFTED = 1, 4  # the first and the last block that the student replaces
IMAGE_SIZE = 224


def teacher(classes):
    return mobilenet_v2(num_classes=classes)


def student(classes):
    return mobilenet_v2(num_classes=classes, width_mult=0.5)


def cut(network):
    """The network's blocks in sequence. Between two of them, teacher and student have equally many pixels."""
    f = network.features
    head = nn.Sequential(f[18], nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.classifier)
    return nn.Sequential(f[:2], f[2:4], f[4:7], f[7:14], f[14:18], head)


def absorb(block, matrix):
    """Optional: put a linear map of channels in front of a block into the block's first convolution."""
    layer = next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    kernel = torch.einsum("ocuv,ci->oiuv", layer.weight.double(), matrix)
    layer.weight = nn.Parameter(kernel.float(), requires_grad=False)
    return True
