"""Nearest class mean (Mensink et al., 2013): what the few images say without a student and without training.

An image gets the class whose mean features have the largest cosine to its own. Features are those in front of the first
grafted block; the mean is over all views of the class's images. It shows how much of a student's accuracy the teacher's
frozen blocks give by themselves.
"""

import math
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from grafting.inputs import Inputs
from grafting.least_squares import all_views, mean_distance
from grafting.method import Method, Training
from grafting.recipes import Phase, Recipe
from grafting.teacher import FrozenTeacher
from models.architectures import CLASSIFIER


class ClassMeans(nn.Module):
    """Cosines of features (B, C, H, W) to the mean of each class: (B, classes)."""

    def __init__(self, classes: int, features: int):
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, features))

    def forward(self, features: Tensor) -> Tensor:
        return functional.normalize(features.flatten(1), dim=1) @ self.means.T


@dataclass(frozen=True)
class NearestClassMean(Method):
    """The images are taken class by class, as they are drawn."""

    name: ClassVar[str] = "nearest-class-mean"
    for_vggs: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    has_student: ClassVar[bool] = False

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        return (Phase.without_steps("means", (recipe.blocks[0], CLASSIFIER + 1)),)

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        features = math.prod(teacher.shapes[teacher.networks.first])
        return [nn.Sequential(ClassMeans(teacher.classes, features))]

    def train(self, recipe: Recipe, training: Training) -> None:
        (phase,), (network,), inputs, started = self.phases(recipe), training.networks, training.inputs, perf_counter()
        network[0].means.copy_(class_means(inputs))
        loss = mean_distance(network, inputs, all_views(inputs))
        training.record(phase, [network], loss, perf_counter() - started)


@torch.no_grad()
def class_means(inputs: Inputs) -> Tensor:
    """The directions of the classes' mean features: (classes, D)."""
    teacher, per_class = inputs.teacher, len(inputs) // inputs.teacher.classes
    view = torch.arange(inputs.views, device=teacher.device)
    sums = [
        inputs.features(teacher.networks.first, torch.full_like(view, image), view).double().sum(0).flatten()
        for image in range(len(inputs))
    ]
    return functional.normalize(torch.stack(sums).unflatten(0, (-1, per_class)).sum(1), dim=1).float()
