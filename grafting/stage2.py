"""Stage 2, progressive net grafting (paper, section 3.3; docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from grafting.recipes import Phase
from grafting.scions import of_span


def net_grafting(
    phases: tuple[Phase, ...], scions: list[nn.Sequential], distill: Callable[[Phase, nn.Sequential], None]
) -> None:
    """Join stage 1's scions until they replace the teacher behind block 2.

    L=2 trains B0 and B1 together, from stage 1's weights; L=3 goes on from L=2's last epoch with stage 1's B2
    behind them. The student is L=3 at its epoch of highest test accuracy. phases: L=2 and L=3, or other joins
    (grafting/method.py). scions: [B0, B1, B2], trained in place.
    """
    for phase in phases:
        distill(phase, of_span(scions, phase.span))
