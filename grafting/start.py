"""How student blocks begin with the teacher's weights (`--start teacher`); the paper's begin with random ones.

A ResNet's stage takes the teacher's residual blocks of the same index. A VGG's blocks and its classifier begin as the
least-squares student (grafting/least_squares.py), and each pair of adapters as one identity: s2t gives the kept
channels unchanged and predicts the others from them, t2s picks the kept ones. So each scion is close to the
teacher's block, and joined they are the least-squares student.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grafting.inputs import Inputs
from grafting.least_squares import Kept, all_views, fitted
from grafting.scions import Adapter, own_block
from grafting.teacher import FrozenTeacher

LEAST_VIEWS = 100_000  # that the last phase shows, so that each of the mixed views is seen several times


def begin_fitted(networks: Sequence[nn.Sequential], inputs: Inputs) -> None:
    """Let fresh blocks of a VGG's student, with or without adapters, begin as the least-squares student.

    networks: one for each grafted block.
    """
    blocks, kept = fitted(inputs, all_views(inputs))
    for index, (network, block) in enumerate(zip(networks, blocks, strict=True)):
        own_block(network).load_state_dict(block.state_dict())
        if isinstance(network[0], Adapter):
            pick(network[0], kept[index - 1].channels)
        if isinstance(network[-1], Adapter):
            predict(network[-1], kept[index])


def copy_blocks(networks: Sequence[nn.Sequential], teacher: FrozenTeacher) -> None:
    """Let fresh student blocks begin with the teacher's, as the networks' rule says. Raises BadInput."""
    for network, block in zip(networks, teacher.networks.grafted, strict=True):
        teacher.networks.copy_block(own_block(network), teacher.blocks[block])


@torch.no_grad()
def pick(t2s: nn.Conv2d, channels: Tensor) -> None:
    """Let the adapter give the teacher's channels that are kept."""
    t2s.weight.zero_()
    t2s.weight[range(t2s.out_channels), channels] = 1.0
    t2s.bias.zero_()


@torch.no_grad()
def predict(s2t: nn.Conv2d, kept: Kept) -> None:
    """Let the adapter give all the teacher's channels from those that are kept."""
    s2t.weight.copy_(kept.weight[:, :, None, None])
    s2t.bias.copy_(kept.bias)
