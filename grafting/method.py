"""What a method is, and the paper's: both stages, from fresh scions to a student.

`comparisons/` holds the methods that it is compared with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from grafting.recipes import Phase, Recipe
from grafting.scions import scions
from grafting.stage1 import block_grafting
from grafting.stage2 import net_grafting
from models import checkpoints
from models.checkpoints import State
from models.vgg import BlockwiseVGG

Distill = Callable[..., None]  # (phase, network[, class]): distil the phase; the class is used instead of Distillation
Networks = list[nn.Sequential]


class Method(ABC):
    """A way from a frozen teacher and few images to a student. Its fields hold what the recipe does not say.

    name: in result files and tables. draws: whether random numbers are drawn; if not, all trials are alike.
    all_views: whether all views of an image are used; if not, their features are not cached.
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = True
    all_views: ClassVar[bool] = True

    @abstractmethod
    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """The whole schedule. The last phase gives the student."""

    @abstractmethod
    def networks(self, teacher: BlockwiseVGG, generator: torch.Generator) -> Networks:
        """What is trained, fresh: three networks for blocks 3, 4 and 5, and others that only training needs."""

    def train(self, recipe: Recipe, networks: Networks, distill: Distill, keep_stage1: Callable[[], None]) -> None:
        """Distil the phases in their order. Here there is one, and it trains all networks at once.

        keep_stage1: keeps what stage 1 of grafting has made.
        """
        (phase,) = self.phases(recipe)
        distill(phase, nn.Sequential(*networks))

    @abstractmethod
    def write(self, teacher: BlockwiseVGG, state: State, path: Path) -> None:
        """Write a student's file. state: of the network of the last phase."""


def front(two: Phase, three: Phase) -> tuple[Phase, ...]:
    """The paper's: L=2 joins B0 and B1, L=3 all."""
    return two, three


def straight(two: Phase, three: Phase) -> tuple[Phase, ...]:
    """From stage 1 to L=3 without L=2, for as many epochs as both. The student is chosen among as many as in L=3."""
    return (replace(three, epochs=two.epochs + three.epochs),)


def back(two: Phase, three: Phase) -> tuple[Phase, ...]:
    """From the back: B1 and B2 are joined first, then all."""
    return replace(two, name="L2-back", span=(4, 6)), three


JOINS = {join.__name__: join for join in (front, straight, back)}


@dataclass(frozen=True)
class Grafting(Method):
    """The paper's method. optimize_span: the order in which stage 2 joins the scions, one of JOINS."""

    optimize_span: str = "front"

    @property
    def name(self) -> str:
        return "grafting" if self.optimize_span == "front" else f"grafting-{self.optimize_span}"

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        return recipe.stage1 + self.stage2(recipe)

    def stage2(self, recipe: Recipe) -> tuple[Phase, ...]:
        return JOINS[self.optimize_span](*recipe.stage2)

    def networks(self, teacher: BlockwiseVGG, generator: torch.Generator) -> Networks:
        return scions(teacher.architecture, teacher.classes, generator)

    def train(self, recipe: Recipe, networks: Networks, distill: Distill, keep_stage1: Callable[[], None]) -> None:
        block_grafting(recipe, networks, distill)
        keep_stage1()
        net_grafting(self.stage2(recipe), networks, distill)

    def write(self, teacher: BlockwiseVGG, state: State, path: Path) -> None:
        checkpoints.write_stage2(state, path)


GRAFTING = Grafting()
