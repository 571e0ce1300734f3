"""Every method by name, with its learning rates, and the grid that they were chosen from.

To add a method: a class like those of this folder (grafting/method.py says what it needs), an entry in METHODS, and
one in GRID if it has numbers to choose.
"""

from __future__ import annotations

from collections.abc import Mapping

from comparisons.whole import Whole
from grafting.method import JOINS, Grafting, Method

GRID: Mapping[str, tuple[Method, ...]] = {
    "whole": (Whole(1e-4, 1e-4), Whole(2.5e-4, 2.5e-3), Whole(1e-3, 1e-3)),
}

# to be chosen from GRID on CIFAR10 at N = 10, by the last test accuracy of trial 0 (benchmarks/grid.py)
METHODS: Mapping[str, Method] = {
    **{grafting.name: grafting for grafting in map(Grafting, JOINS)},
    "whole": Whole(1e-3, 1e-3),
}
