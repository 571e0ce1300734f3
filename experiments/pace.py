"""How long the rest of a sweep takes: from what its phases have taken so far, and from the work of the others.

A phase that has been measured takes for a step and for a test what it took. Of another one, or of other batches, a step
grows with a power of its multiply-adds, and a test with its multiply-adds. This is an estimate (docs/runs.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from acceleration.feature_cache import CachedTeacher
from grafting.distillation import Curve
from grafting.recipes import Phase
from utils.text import brief_time

if TYPE_CHECKING:
    from experiments.cell import Cell
    from experiments.job import Job

GROWTH = {"cpu": 0.5, "cuda": 0.15}  # of the seconds of a step with its multiply-adds: this power fits past results
# times as many multiply-adds a second in a student's test as in the teacher's (acceleration/winograd.py)
PRODUCTS = 3.0
TEACHER = "teacher"
FIRST_SECONDS = 5.0  # of training and testing, before anything is said


@dataclass(frozen=True)
class Measured:
    """Seconds of a step with so many images, and of a test, or None where there was none."""

    step: float
    batch: int
    test: float | None


class Pace:
    """What the phases of a sweep have taken, and what is left of its cells. torchrun's processes share what waits.

    of_teacher: seconds of the teacher's own test, images and all, from which a student's is estimated before the first.
    """

    def __init__(self, job: Job, cells: Sequence[Cell], teacher: CachedTeacher, of_teacher: float):
        self.job, self.teacher = job, teacher
        self.waiting = list(cells)  # not begun
        self.phases = job.method.phases(job.recipe)
        self.eval_every = job.args.eval_every
        is_cpu = teacher.device.type == "cpu"
        self.growth = GROWTH["cpu" if is_cpu else "cuda"]
        if job.method.mixes_views:  # its one step is over all mixed views, as many for every N
            self.growth = 0.0
        self.of_teacher, self.faster = of_teacher, PRODUCTS if is_cpu and teacher.networks.is_vgg else 1.0
        self.measured: dict[str, Measured] = {}
        self.work: dict[str, tuple[float, float]] = {}  # multiply-adds of an image, in training and in a test
        self.per_image = 0.0  # seconds to compute the features of a few-shot image
        self.per_subset = 0.0  # seconds to compute those of a subset's mixed views, and to fit what begins with them
        self.subset: tuple[int, int] | None = None  # seed and N of the last cell that began
        self.seconds = 0.0  # of training and testing in the running cell
        self.began = perf_counter()  # the running cell
        self.before: float | None = None  # seconds of the running cell before its first epoch: the teacher's features
        self.beside = 0.0  # seconds of the last cell for anything else
        self.is_said = False

    def begin(self, cell: Cell) -> None:
        self.waiting.remove(cell)
        self.subset = subset_of(cell)
        self.seconds, self.before, self.began = 0.0, None, perf_counter()

    def end(self) -> None:
        """The cell that began is over."""
        self.beside = max(0.0, perf_counter() - self.began - self.seconds - (self.before or 0.0))

    def predict(self, cell: Cell, curves: Mapping[str, Curve]) -> None:
        """Say once how long the cells will take. Cells that are quicker than that are not foretold."""
        if not self.is_said and self.is_known and self.seconds >= FIRST_SECONDS:
            self.is_said = True
            whole = brief_time(self.seconds + self.before + self.left(cell, curves))
            self.job.announce(f"{counted(len(self.waiting) + 1)}: about {whole}, estimated from the first epochs")

    def rest(self) -> str:
        """ "; 3 cells left, about 12 min"; empty after the last one."""
        if not self.waiting:
            return ""
        left = self.left()
        return f"; {counted(len(self.waiting))} left" + ("" if left is None else f", about {brief_time(left)}")

    def measure(self, cell: Cell, curves: Mapping[str, Curve]) -> None:
        """Learn from a running cell's curves, after an epoch."""
        for phase in self.phases:
            curve = curves.get(phase.name)
            if curve and curve.epoch:
                tests = len(curve.accuracies)
                test = curve.seconds["evaluation"] / tests if tests else None
                step = curve.seconds["training"] / curve.epoch / steps_of(cell, phase)
                self.measured[phase.name] = Measured(step, phase.batch(cell.shots), test)
        self.seconds = sum(sum(curve.seconds.values()) for curve in curves.values())
        if self.before is None:
            self.before = max(0.0, perf_counter() - self.began - self.seconds)
            if self.job.mixes_views:
                self.per_subset = max(self.per_subset, self.before)  # further trials have them from the first
            elif self.teacher.cache and not self.per_image:
                self.per_image = self.before / len(self.teacher.cache.filled)

    @property
    def is_known(self) -> bool:
        """Whether enough was measured to say how long the rest takes."""
        return self.seconds >= FIRST_SECONDS or all(phase.name in self.measured for phase in self.phases)

    def left_of(self, cell: Cell, curves: Mapping[str, Curve]) -> float | None:
        """Seconds that are left of a cell, its features not counted; None where they are not known yet."""
        if not self.is_known:
            return None
        seconds = 0.0
        for phase in self.phases:
            done = curves[phase.name].epoch if phase.name in curves else 0
            tests = sum(phase.measures(epoch, self.eval_every) for epoch in range(done + 1, phase.epochs + 1))
            steps = (phase.epochs - done) * steps_of(cell, phase)
            seconds += steps * self._step(phase, phase.batch(cell.shots)) + tests * self._test(phase)
        return seconds

    def left(self, cell: Cell | None = None, curves: Mapping[str, Curve] | None = None) -> float | None:
        """Seconds that are left of the running cell, if there is one, and of all that wait."""
        if not self.is_known:
            return None
        running = self.left_of(cell, curves) if cell else 0.0
        later = self._features() + sum(self.left_of(waiting, {}) + self.beside for waiting in self.waiting)
        return running + later / self.job.process.count

    def _features(self) -> float:
        """Seconds of the waiting cells for the teacher's features, and where blocks begin fitted, for that."""
        if self.job.mixes_views:
            return self.per_subset * len({subset_of(waiting) for waiting in self.waiting} - {self.subset})
        largest: dict[int, int] = {}  # images of each few-shot subset; that of a smaller N is part of it
        for waiting in self.waiting:
            seed = waiting.job.subset_seed
            largest[seed] = max(largest.get(seed, 0), len(waiting.images))
        images = sum(largest.values())
        filled = len(self.teacher.cache.filled) if self.teacher.cache else images
        return self.per_image * max(0, images - filled)

    def _step(self, phase: Phase, batch: int) -> float:
        if own := self.measured.get(phase.name):
            return own.step * (batch / own.batch) ** self.growth
        largest = self._largest(self.measured)
        known, work = self.measured[largest], self._work()
        return known.step * (batch * work[phase.name][0] / (known.batch * work[largest][0])) ** self.growth

    def _test(self, phase: Phase) -> float:
        if tested := {name: measured.test for name, measured in self.measured.items() if measured.test is not None}:
            if phase.name in tested:
                return tested[phase.name]
            largest, faster = self._largest(tested), 1.0
        else:
            tested, largest, faster = {TEACHER: self.of_teacher}, TEACHER, self.faster
        return tested[largest] * self._work()[phase.name][1] / self._work()[largest][1] / faster

    def _largest(self, names: Iterable[str]) -> str:
        """The phase with the most work in a test."""
        return max(names, key=lambda name: self._work()[name][1])

    def _work(self) -> Mapping[str, tuple[float, float]]:
        if not self.work:
            networks = self.job.method.fresh(self.teacher, torch.Generator())
            counting = Counting(self.teacher, [network.to(self.teacher.device) for network in networks])
            self.job.method.train(self.job.recipe, counting)
            self.work = counting.work
        return self.work


class Counting:
    """Stands for a cell in training (grafting/method.py), and counts the multiply-adds of its phases."""

    def __init__(self, teacher: CachedTeacher, networks: list[nn.Sequential]):
        self.teacher, self.networks = teacher, networks
        self.work = {TEACHER: self._count(teacher.blocks, 0)}

    def distill(self, phase: Phase, networks: Sequence[nn.Module]) -> None:
        start, end = phase.span
        self.work[phase.name] = self._count(nn.Sequential(*networks, self.teacher.blocks[end:]).eval(), start)

    def _count(self, network: nn.Module, start: int) -> tuple[int, int]:
        """In a step and in a test, from the features at `start`."""
        from torch.utils.flop_counter import FlopCounterMode

        image = torch.zeros(1, *self.teacher.shapes[start], device=self.teacher.device).requires_grad_(start == 0)
        with FlopCounterMode(display=False) as training:
            network(image).sum().backward()
        with torch.no_grad(), FlopCounterMode(display=False) as test:
            network(image)
        return training.get_total_flops(), test.get_total_flops()

    def keep_stage1(self) -> None:
        """Nothing is kept."""


def subset_of(cell: Cell) -> tuple[int, int]:
    """The seed and N of its few-shot subset."""
    return cell.job.subset_seed, cell.shots


def steps_of(cell: Cell, phase: Phase) -> int:
    """Steps of the optimiser in an epoch."""
    return math.ceil(phase.views_in_epoch(len(cell.images)) / phase.batch(cell.shots))


def counted(cells: int) -> str:
    """ "1 cell", "12 cells"."""
    return f"{cells} cell" if cells == 1 else f"{cells} cells"
