"""Students without training: FSKD (Li et al., CVPR 2020), and least squares with a solved classifier. For VGGs.

FSKD, few-sample knowledge distillation, prunes the teacher's convolutions and solves a 1x1 convolution behind each of
them (grafting/least_squares.py). The first linear layer keeps the columns of the channels that are left, as in the
authors' code, and each image is used once, as it is. `least-squares` and `least-squares-images` also solve that linear
layer; most of their accuracy comes from that. The first uses many views of each image, the second each image alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import torch
from torch import nn

from comparisons.kd import PlainStudent
from grafting.inputs import Inputs
from grafting.least_squares import enough_views, mean_distance, one_view, pruned, solve, solve_classifier
from grafting.method import Training
from grafting.recipes import Phase, Recipe
from grafting.teacher import FrozenTeacher


@dataclass(frozen=True)
class LeastSquares(PlainStudent):
    """solves_classifier: solve the first linear layer too. uses_views: use views of each image, not it alone."""

    for_vggs: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    name: str
    solves_classifier: bool
    uses_views: bool

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """One pass over the layers."""
        return (Phase.without_steps("solve" if self.solves_classifier else "recover", recipe.phases[-1].span),)

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        self.require_plain(teacher.networks.student(teacher.classes), teacher)
        return [nn.Sequential(block) for block in pruned(teacher)]

    def train(self, recipe: Recipe, training: Training) -> None:
        (phase,) = self.phases(recipe)
        inputs = training.inputs if self.uses_views else Inputs(training.teacher, training.images)
        started, student = perf_counter(), nn.Sequential(*(block for (block,) in training.networks))
        batches = enough_views(inputs) if self.uses_views else one_view(inputs, inputs.teacher.views.middle)
        solve(student, inputs, batches)
        if self.solves_classifier:
            solve_classifier(student, inputs, batches)
        loss = mean_distance(student, inputs, batches)
        training.record(phase, training.networks, loss, perf_counter() - started)


LEAST_SQUARES: Sequence[LeastSquares] = (
    LeastSquares("fskd", solves_classifier=False, uses_views=False),
    LeastSquares("least-squares", solves_classifier=True, uses_views=True),
    LeastSquares("least-squares-images", solves_classifier=True, uses_views=False),
)
