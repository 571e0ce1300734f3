"""Knowledge distillation (Hinton, Vinyals and Dean, 2015): the teacher's softened probabilities.

The student has no adapters. No label is used, so the loss is the first of the paper's two terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from comparisons.plain_student import PlainStudent
from grafting.recipes import Phase, Recipe


@dataclass(frozen=True)
class Softened:
    """T^2 times the Kullback-Leibler divergence of the probabilities at temperature T, summed over the batch.

    The factor keeps the gradients comparable between temperatures (section 2 of the paper).
    """

    temperature: float

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """student, teacher: logits (B, classes) -> scalar."""
        ours, theirs = (
            functional.log_softmax(logits.float() / self.temperature, dim=1) for logits in (student, teacher)
        )
        return functional.kl_div(ours, theirs, reduction="sum", log_target=True) * self.temperature**2


@dataclass(frozen=True)
class KD(PlainStudent):
    """lr: learning rate, for every N."""

    name: ClassVar[str] = "kd"
    lr: float
    temperature: float

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        return (kd_phase(recipe, recipe.epochs, self.lr, self.temperature),)


def kd_phase(recipe: Recipe, epochs: int, lr: float, temperature: float) -> Phase:
    """The student's own blocks at once. It is chosen among as many epochs as grafting's."""
    last = recipe.phases[-1]
    return Phase(
        "kd", last.span, epochs, lr, lr, scaled=False, selects_among=last.selects_among,
        loss=Softened(temperature),
    )  # fmt: skip
