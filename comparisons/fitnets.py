"""FitNets (Romero et al., ICLR 2015): hints on the outputs of blocks 3 and 4, then knowledge distillation.

A hint trains the student up to a block, so that a regressor behind it, here a 1x1 convolution, gives the teacher's
output of that block. The regressors are left out afterwards. docs/comparisons.md lists the differences from the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from comparisons.kd import kd_phase
from comparisons.plain_student import PlainStudent, fresh_student
from grafting.method import Distill, Networks
from grafting.recipes import Phase, Recipe
from grafting.scions import adapter
from models.vgg import FIRST_GRAFTED, BlockwiseVGG, initialize, student_of


@dataclass(frozen=True)
class Hint:
    """Half the squared Euclidean distance of two outputs, summed over the batch (equation 3 of the paper)."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """student, teacher: (B, C, H, W) -> scalar."""
        return (student.float() - teacher.float()).square().sum() / 2


@dataclass(frozen=True)
class FitNets(PlainStudent):
    """lr_hint, lr: learning rates of the hints and of knowledge distillation, for every N.

    The hints take as many epochs as B0 and B1 of grafting, knowledge distillation the rest.
    """

    name: ClassVar[str] = "fitnets"
    lr_hint: float
    lr: float
    temperature: float

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        hints = tuple(
            Phase(
                f"hint {block}", (FIRST_GRAFTED, block + 1), alike.epochs, self.lr_hint, self.lr_hint, scaled=False,
                loss=Hint(), at_logits=False,
            )
            for block, alike in zip((FIRST_GRAFTED, FIRST_GRAFTED + 1), recipe.stage1[:2], strict=True)
        )  # fmt: skip
        rest = recipe.epochs - sum(hint.epochs for hint in hints)
        return *hints, kd_phase(recipe, rest, self.lr, self.temperature)

    def networks(self, teacher: BlockwiseVGG, generator: torch.Generator) -> Networks:
        """The student's blocks 3, 4 and 5, and the regressors behind blocks 3 and 4."""
        wide, narrow = teacher.architecture, student_of(teacher.architecture)
        student = fresh_student(teacher, generator)
        regressors = [adapter(narrow.width_after(b), wide.width_after(b)) for b in (FIRST_GRAFTED, FIRST_GRAFTED + 1)]
        return [*student, *(nn.Sequential(initialize(regressor, generator)) for regressor in regressors)]

    def train(self, recipe: Recipe, networks: Networks, distill: Distill, keep_stage1: Callable[[], None]) -> None:
        block3, block4, head, regressor3, regressor4 = networks
        hint3, hint4, kd = self.phases(recipe)
        distill(hint3, nn.Sequential(block3, regressor3))
        distill(hint4, nn.Sequential(block3, block4, regressor4))
        distill(kd, nn.Sequential(block3, block4, head))
