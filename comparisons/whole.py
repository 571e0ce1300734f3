"""The whole student at once: grafting's scions, fresh, over [3, 6) with grafting's loss.

The difference from grafting is what going block by block adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from grafting.method import Method, Networks
from grafting.recipes import Phase, Recipe
from grafting.scions import scions
from models import checkpoints
from models.checkpoints import State
from models.vgg import BlockwiseVGG


@dataclass(frozen=True)
class Whole(Method):
    """lr_student, lr_adapter: learning rates, for every N."""

    name: ClassVar[str] = "whole"
    lr_student: float
    lr_adapter: float

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        last = recipe.stage2[-1]
        return (
            Phase(
                "whole", last.span, recipe.epochs, self.lr_student, self.lr_adapter, scaled=False,
                selects_among=last.selects_among,
            ),
        )  # fmt: skip

    def networks(self, teacher: BlockwiseVGG, generator: torch.Generator) -> Networks:
        return scions(teacher.architecture, teacher.classes, generator)

    def write(self, teacher: BlockwiseVGG, state: State, path: Path) -> None:
        checkpoints.write_stage2(state, path)
