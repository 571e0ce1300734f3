"""What a method is: a way from a frozen teacher and few images to a student.

The paper's is in grafting/stages.py; `comparisons/` holds the methods that it is compared with.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from grafting import students
from grafting.inputs import Inputs
from grafting.recipes import Phase, Recipe
from grafting.scions import scions
from grafting.teacher import FrozenTeacher
from models.checkpoints import State
from models.networks import Networks
from utils.errors import BadInput


class Training(Protocol):
    """A cell in training (experiments/training.py), as a method sees it."""

    teacher: FrozenTeacher
    networks: list[nn.Sequential]  # what is trained, from `Method.fresh`
    inputs: Inputs  # made when first asked for
    images: np.ndarray  # (N, 3, stored, stored) uint8, for a method that does without all views

    def distill(self, phase: Phase, networks: Sequence[nn.Module]) -> None:
        """Train some of the networks, in sequence, over the phase's span."""

    def record(self, phase: Phase, networks: Sequence[nn.Module], loss: float, seconds: float) -> None:
        """Measure networks that were computed without training steps; it counts as one epoch."""

    def keep_stage1(self) -> None:
        """Write the scions as they are after stage 1, and measure them joined."""


class Method(ABC):
    """Its fields hold what the recipe does not say.

    name: in result files and tables. for_vggs: only for VGGs. trains: whether there are steps of an optimiser.
    mixes_views: whether it always sees mixed views (grafting/mixed_views.py), not only with `--start teacher`.
    has_student: whether there is a student to be written.
    """

    name: str
    for_vggs: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    mixes_views: bool = False
    has_student: ClassVar[bool] = True

    def require_networks(self, networks: Networks) -> None:
        """Raise BadInput where the method cannot run with these networks."""
        if self.for_vggs and not networks.is_vgg:
            raise BadInput(f"--method {self.name}: is for VGGs only, not for --networks {networks.base_name}")

    @abstractmethod
    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """The whole schedule. The last phase gives the student."""

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        """What is trained, fresh: a network for each block that is replaced, and others that only training needs.

        Here scions.
        """
        return scions(teacher, generator)

    def train(self, recipe: Recipe, training: Training) -> None:
        """The default, for a method of one phase: train all networks at once."""
        (phase,) = self.phases(recipe)
        training.distill(phase, training.networks)

    def write(self, teacher: FrozenTeacher, state: State, path: Path) -> None:
        """Write a student's file. state: of the networks of the last phase, in sequence; here scions."""
        made = nn.Sequential(*scions(teacher, torch.Generator()))
        made.load_state_dict(state)
        students.write(teacher, made.to(teacher.device), path)
