"""FitNets (Romero et al., ICLR 2015): hints on the outputs of blocks, then knowledge distillation.

A hint trains the student up to a block, so that a regressor behind it, here a 1x1 convolution, gives the teacher's
output of that block. The regressors are left out afterwards. docs/comparisons.md lists the differences from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from comparisons.kd import kd_phase
from comparisons.plain_student import PlainStudent
from grafting.method import Training
from grafting.recipes import Phase, Recipe
from grafting.scions import Adapter
from grafting.teacher import FrozenTeacher
from models.networks import frozen, initialize, output_shapes


@dataclass(frozen=True)
class Hint:
    """Half the squared Euclidean distance of two outputs, summed over the batch (equation 3 of the paper)."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """student, teacher: (B, C, H, W) -> scalar."""
        return (student.float() - teacher.float()).square().sum() / 2


@dataclass(frozen=True)
class FitNets(PlainStudent):
    """lr_hint, lr: learning rates of the hints and of knowledge distillation, for every N.

    The hints, on all grafted blocks but the last, take as many epochs as B0, B1, ... of grafting, knowledge
    distillation the rest.
    """

    name: ClassVar[str] = "fitnets"
    lr_hint: float
    lr: float
    temperature: float

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        hints = tuple(
            Phase(
                f"hint {block}", (recipe.blocks[0], block + 1), alike.epochs, self.lr_hint, self.lr_hint, scaled=False,
                loss=Hint(), at_logits=False,
            )
            for block, alike in zip(recipe.blocks[:-1], recipe.stage1[:-1], strict=True)
        )  # fmt: skip
        rest = recipe.epochs - sum(hint.epochs for hint in hints)
        return *hints, kd_phase(recipe, rest, self.lr, self.temperature)

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        """The student's own blocks, and a regressor behind each of them but the last."""
        student, networks = super().fresh(teacher, generator), teacher.networks
        shapes = output_shapes(frozen(networks.cut(networks.student(teacher.classes))), teacher.image_size)
        regressors = [
            nn.Sequential(initialize(Adapter(shapes[block + 1][0], teacher.shapes[block + 1][0]), generator))
            for block in networks.grafted[:-1]
        ]
        return [*student, *regressors]

    def train(self, recipe: Recipe, training: Training) -> None:
        *hints, kd = self.phases(recipe)
        blocks, regressors = training.networks[: len(recipe.blocks)], training.networks[len(recipe.blocks) :]
        for count, (hint, regressor) in enumerate(zip(hints, regressors, strict=True), start=1):
            training.distill(hint, [*blocks[:count], regressor])
        training.distill(kd, blocks)
