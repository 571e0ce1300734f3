"""torchvision's ResNets, cut at their stages: the paper's third experiment (docs/method.md, section 9).

Block 0 is the stem, blocks 1 to 4 are layer1 to layer4, block 5 is the average pooling with the linear layer. For
images (B, 3, S, S) the blocks' outputs have S/4, S/4, S/8, S/16 and S/32 pixels on each side.
"""

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from utils.errors import BadInput


def cut(network: ResNet) -> nn.Sequential:
    """The network's six blocks. They share its parameters; slices of the sequence do too."""
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    head = nn.Sequential(network.avgpool, nn.Flatten(), network.fc)
    return nn.Sequential(stem, network.layer1, network.layer2, network.layer3, network.layer4, head)


@torch.no_grad()
def absorb(block: nn.Module, matrix: Tensor) -> bool:
    """Put a linear map of channels, which is in front of a block, into the block; False where that is not exact.

    matrix: (channels of the block, channels in front of the map), of 1x1 convolutions without bias, in float64. A stage
    takes it into its first convolution and its downsample convolution; average pooling is linear, so the head takes it
    into its linear layer. A stage whose first residual block has no downsample convolution adds its input as it is.
    """
    first = block[0]
    if isinstance(first, nn.AdaptiveAvgPool2d):
        linear = block[-1]
        linear.weight = nn.Parameter((linear.weight.double() @ matrix).float(), requires_grad=False)
        return True
    if first.downsample is None:
        return False
    for layer in (first.conv1, first.downsample[0]):
        kernel = torch.einsum("ocuv,ci->oiuv", layer.weight.double(), matrix)
        layer.weight = nn.Parameter(kernel.float(), requires_grad=False)
    return True


def copy_block(ours: nn.Sequential, theirs: nn.Sequential) -> None:
    """Begin a student's stage with the teacher's residual blocks of the same index, of which the teacher has more.

    Raises BadInput where they have other shapes.
    """
    for index, block in enumerate(ours):
        state = theirs[index].state_dict() if index < len(theirs) else {}
        shapes = [{key: value.shape for key, value in of.items()} for of in (block.state_dict(), state)]
        if shapes[0] != shapes[1]:
            raise BadInput("--start teacher: the residual blocks of teacher and student differ in shape; leave it out")
        block.load_state_dict(state)
