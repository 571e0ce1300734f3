"""Stage 1, block grafting (paper, section 3.2; docs/method.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from grafting.recipes import Phase, Recipe


def block_grafting(
    recipe: Recipe, scions: list[nn.Sequential], distill: Callable[[Phase, nn.Sequential], None]
) -> None:
    """Train B0, B1 and B2 one after the other, each alone in an otherwise unchanged teacher.

    Each replaces one block and learns to reproduce the teacher's logits through the blocks behind it. The result is
    the weights of the last epoch. scions: [B0, B1, B2], trained in place.
    """
    for phase, scion in zip(recipe.stage1, scions, strict=True):
        distill(phase, nn.Sequential(scion))
