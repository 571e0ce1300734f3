"""Every method by name, with its learning rates, and the grid that they were chosen from.

To add a method: a class like those of this folder (grafting/method.py says what it needs), an entry in METHODS, its
name in METHOD_NAMES of utils/arguments.py, and an entry in GRID if it has numbers to choose.
"""

from __future__ import annotations

from collections.abc import Mapping

from comparisons.fitnets import FitNets
from comparisons.fskd import FSKD
from comparisons.kd import KD
from comparisons.whole import Whole
from grafting.method import Method
from grafting.stages import JOINS, Grafting

GRID: Mapping[str, tuple[Method, ...]] = {
    "whole": (Whole(1e-4, 1e-4), Whole(2.5e-4, 2.5e-3), Whole(1e-3, 1e-3)),
    "kd": tuple(KD(lr, temperature) for lr in (1e-4, 3e-4, 1e-3) for temperature in (1.0, 4.0, 10.0)),
    "fitnets": tuple(FitNets(lr_hint, lr, 4.0) for lr_hint in (1e-4, 3e-4, 1e-3) for lr in (1e-4, 3e-4)),
}

# chosen from GRID on CIFAR10 at N = 10, by the last test accuracy of trial 0 (benchmarks/results/grids)
METHODS: Mapping[str, Method] = {
    **{grafting.name: grafting for grafting in map(Grafting, JOINS)},
    "whole": Whole(2.5e-4, 2.5e-3),
    "kd": KD(3e-4, 4.0),
    "fitnets": FitNets(1e-4, 3e-4, 4.0),
    "fskd": FSKD(),
    "fskd-images": FSKD(all_views=False),
}
