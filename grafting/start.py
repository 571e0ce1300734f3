"""How student blocks begin with the teacher's weights (`--start teacher`); the paper's begin with random ones.

A ResNet's stage takes the teacher's residual blocks of the same index. A VGG's blocks and its classifier begin as the
least-squares student (grafting/least_squares.py), and each pair of adapters as one identity: s2t gives the channels
that are kept unchanged and the others by least squares, t2s picks the kept ones. So each scion is close to the
teacher's block, and joined they are the least-squares student.
"""

from collections.abc import Sequence

import torch
from torch import nn

from grafting.inputs import Inputs
from grafting.least_squares import enough_views, pruned, solve, solve_adapter, solve_classifier, strongest
from grafting.scions import Adapter, own_block
from grafting.teacher import FrozenTeacher
from models.architectures import CLASSIFIER
from models.vgg import convolutions

START = "start"  # the phase of a start that is kept (experiments/training.py)


def begin_solved(networks: Sequence[nn.Sequential], inputs: Inputs) -> None:
    """Let fresh blocks of a VGG's student, with or without adapters, begin as the least-squares student.

    networks: one for each grafted block; others behind them stay as they are.
    """
    teacher, blocks, views = inputs.teacher, solved(inputs), enough_views(inputs)
    for index, (network, solved_block) in enumerate(zip(networks, blocks, strict=False)):
        own_block(network).load_state_dict(solved_block.state_dict())
        if isinstance(network[0], Adapter):
            wide = teacher.blocks[teacher.networks.first + index - 1]
            pick(network[0], convolutions(wide)[-1])
        if isinstance(network[-1], Adapter):
            solve_adapter(network[-1], blocks[: index + 1], inputs, views)


def copy_blocks(networks: Sequence[nn.Sequential], teacher: FrozenTeacher) -> None:
    """Let fresh student blocks begin with the teacher's, as the networks' rule says. Raises BadInput."""
    for network, block in zip(networks, teacher.networks.grafted, strict=True):
        teacher.networks.copy_block(own_block(network), teacher.blocks[block])


def solved(inputs: Inputs) -> nn.Sequential:
    """The grafted blocks of the least-squares student."""
    student, batches = pruned(inputs.teacher), enough_views(inputs)
    solve(student, inputs, batches)
    if CLASSIFIER in inputs.teacher.networks.grafted:
        solve_classifier(student, inputs, batches)
    return student


@torch.no_grad()
def pick(t2s: nn.Conv2d, wide: nn.Conv2d) -> None:
    """Let the adapter give the teacher's channels that are kept. wide: the convolution that they come from."""
    t2s.weight.zero_()
    t2s.weight[range(t2s.out_channels), strongest(wide, t2s.out_channels)] = 1.0
    t2s.bias.zero_()
