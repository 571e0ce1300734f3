"""Students without training: FSKD (Li et al., CVPR 2020), and least squares (grafting/least_squares.py). For VGGs.

FSKD, few-sample knowledge distillation, keeps the filters of largest L1 norm, without what they read of the others, and
solves a 1x1 convolution behind each of them. The first linear layer keeps the columns of the channels that are left, as
in the authors' code, and each image is used once, as it is. `least-squares` uses mixed views of the images
(grafting/mixed_views.py), `least-squares-images` each image alone; both solve the linear layer too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import ClassVar

import torch

from comparisons.kd import PlainStudent
from grafting.inputs import Inputs
from grafting.least_squares import (
    Batches,
    Keep,
    Kept,
    Place,
    all_views,
    fitted,
    mean_distance,
    most_telling,
    one_view,
)
from grafting.method import Training
from grafting.recipes import Phase, Recipe


def strongest(inputs: Inputs, batches: Batches, place: Place, count: int) -> Kept:
    """The filters with the largest L1 norms. Of the other channels nothing is predicted: they are 0."""
    norms = inputs.teacher.blocks[place.block][place.position].weight.abs().flatten(1).sum(1)
    channels = norms.argsort(descending=True, stable=True)[:count].sort().values
    nothing = torch.zeros_like(norms, dtype=torch.float64)
    return Kept(channels, torch.eye(len(norms), dtype=torch.float64, device=norms.device)[:, channels], nothing)


@dataclass(frozen=True)
class LeastSquares(PlainStudent):
    """keep: which channels. solves_classifier: the first linear layer too.

    mixes_views: of the images, instead of taking each alone.
    """

    for_vggs: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    name: str
    keep: Keep
    solves_classifier: bool
    mixes_views: bool = field(kw_only=True)

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """One pass over the layers."""
        return (Phase.without_steps("fit" if self.solves_classifier else "recover", recipe.phases[-1].span),)

    def train(self, recipe: Recipe, training: Training) -> None:
        (phase,) = self.phases(recipe)
        inputs = training.inputs if self.mixes_views else Inputs(training.teacher, training.images)
        started = perf_counter()
        batches = all_views(inputs) if self.mixes_views else one_view(inputs, inputs.teacher.views.middle)
        student, _ = fitted(inputs, batches, self.keep, self.solves_classifier)
        for (block,), found in zip(training.networks, student, strict=True):
            block.load_state_dict(found.state_dict())
        loss = mean_distance(student, inputs, batches)
        training.record(phase, training.networks, loss, perf_counter() - started)


LEAST_SQUARES: Sequence[LeastSquares] = (
    LeastSquares("fskd", strongest, solves_classifier=False, mixes_views=False),
    LeastSquares("least-squares", most_telling, solves_classifier=True, mixes_views=True),
    LeastSquares("least-squares-images", most_telling, solves_classifier=True, mixes_views=False),
)
