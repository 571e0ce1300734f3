"""The whole student at once: grafting's scions, fresh, over all grafted blocks with grafting's loss.

The difference from grafting is what going block by block adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from grafting.method import Method
from grafting.recipes import Phase, Recipe
from grafting.scions import scions
from grafting.teacher import FrozenTeacher


@dataclass(frozen=True)
class Whole(Method):
    """lr_student, lr_adapter: learning rates, for every N."""

    name: ClassVar[str] = "whole"
    lr_student: float
    lr_adapter: float

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        last, rates = recipe.phases[-1], (self.lr_student, self.lr_adapter)
        return (Phase("whole", last.span, recipe.epochs, *rates, scaled=False, selects_among=last.selects_among),)

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        return scions(teacher, generator)
