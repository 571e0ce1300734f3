"""The student without adapters: its own blocks behind each other, and the teacher's blocks around them.

Its file has the layout of a whole network, with the keys of `vgg16-graft` (models/architectures.py) for a VGG16.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from grafting.method import Method
from grafting.teacher import FrozenTeacher
from models import checkpoints
from models.checkpoints import State
from models.networks import initialize


def own_blocks(student: nn.Module, teacher: FrozenTeacher) -> list[nn.Sequential]:
    """The student's blocks that are not the teacher's: a network each, in the place of B0, B1, ..."""
    blocks = teacher.networks.cut(student)
    return [nn.Sequential(blocks[block]) for block in teacher.networks.grafted]


def without_own_blocks(teacher: FrozenTeacher) -> nn.Module:
    """A student of the teacher, on the CPU, whose other blocks are the teacher's."""
    networks = teacher.networks
    student = networks.student(teacher.classes)
    for block, (ours, theirs) in enumerate(zip(networks.cut(student), teacher.blocks, strict=True)):
        if block not in networks.grafted:
            ours.load_state_dict(theirs.state_dict())
    return student


class PlainStudent(Method):
    """A method whose student has no adapters."""

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        return own_blocks(initialize(teacher.networks.student(teacher.classes), generator), teacher)

    def write(self, teacher: FrozenTeacher, state: State, path: Path) -> None:
        """Write the whole student. state: of the sequence of its own blocks."""
        student = without_own_blocks(teacher)
        nn.Sequential(*own_blocks(student, teacher)).load_state_dict(state)
        checkpoints.write_network(student, path)
