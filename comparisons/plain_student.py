"""The student without adapters: blocks 0 to 2 are the teacher's, blocks 3 and 4 have half the width.

Its file has the layout of a teacher's, with the keys of `vgg16-graft` (models/vgg.py) for a VGG16.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from grafting.method import Method
from models import checkpoints
from models.checkpoints import State
from models.vgg import FIRST_GRAFTED, BlockwiseVGG, initialize, student_of


def fresh_student(teacher: BlockwiseVGG, generator: torch.Generator) -> list[nn.Sequential]:
    """Freshly initialised blocks 3, 4 and 5 of the teacher's student."""
    return own_blocks(initialize(BlockwiseVGG(student_of(teacher.architecture), teacher.classes), generator))


def own_blocks(student: BlockwiseVGG) -> list[nn.Sequential]:
    """The blocks that are not the teacher's: a network each, in the place of B0, B1 and B2."""
    return [student[block : block + 1] for block in range(FIRST_GRAFTED, len(student))]


class PlainStudent(Method):
    """A method whose student has no adapters."""

    def write(self, teacher: BlockwiseVGG, state: State, path: Path) -> None:
        """Write the whole student. state: of the sequence of its own blocks."""
        student = BlockwiseVGG(student_of(teacher.architecture), teacher.classes)
        student[:FIRST_GRAFTED].load_state_dict(teacher[:FIRST_GRAFTED].state_dict())
        nn.Sequential(*own_blocks(student)).load_state_dict(state)
        checkpoints.write_teacher(student, path)
