"""A sweep: which cells to run, in which order, each by one process at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import filelock
import numpy as np
import torch
from torch import nn

from acceleration.feature_cache import CachedTeacher
from data.fewshot import subset
from experiments import pictures, results, students
from experiments.cell_runner import CellRunner, write_if_possible
from experiments.expectation import doubt
from experiments.fresh import Fresh
from experiments.plan import CellKey, Plan
from experiments.planned_cell import PlannedCell
from experiments.setting import Setting, require_comparable
from experiments.summary import write_summary
from experiments.tensorboard import quiet_writers
from models import checkpoints
from models.vgg import frozen
from utils import files
from utils.errors import BadInput
from utils.precision import arithmetic, cache_dtype
from utils.progress import bar

SUMMARY_SECONDS = 30.0  # between tables of unfinished sweeps: making one takes longer than a cell of CIFAR10 on a GPU
PreparedTeacher = tuple[CachedTeacher, dict[str, Any]]  # frozen, with cached features; its entry in the result files


class Sweep:
    """The cells of a plan. Raises BadInput before any cell is run, if there is something wrong with the plan.

    begins: whether it begins at once: removes what --fresh replaces, and finds what is left to run; if not, begin()
    does it, for several plans together.

    Several processes may run the same plan, intentionally or by mistake: each takes the next cell that is neither done
    nor running. A running cell holds a file lock, which the operating system releases if the process is killed.
    """

    def __init__(self, plan: Plan, device: torch.device, begins: bool = True):
        self.plan = plan
        self.device = device
        for directory in (plan.output_dir, plan.student_dir):
            files.require_writable(directory)
        self.cells = planned(plan)
        self.fresh = Fresh(plan.output_dir, self.cells)
        self.replaces = plan.fresh and plan.is_leader
        if self.replaces and not self.fresh.continues():
            self._require_comparable(except_for=self.cells)
            self._require_free_students(self.cells)
        self.left: list[PlannedCell] = []
        if begins:
            begin([self])

    def find_left(self) -> None:
        """Find the cells that have no result. Raises BadInput where one could not be run or continued."""
        self.left = []
        for cell in self.cells:
            if cell.is_done():
                cell.checkpoint.unlink(missing_ok=True)  # of a cell that was killed just after its last write
            else:
                self.left.append(cell)
        self._require_comparable()
        self._require_free_students(self.left)
        for cell in self.left:
            cell.require_own_checkpoint()

    def _require_comparable(self, except_for: Sequence[PlannedCell] = ()) -> None:
        """Raise BadInput now if the table at the end could not be made. except_for: cells that will be run again."""
        there = results.read_all(self.plan.output_dir, [cell.result for cell in except_for])
        settings = {results.name_of(result): result["setting"] for result in there}
        for cell in self.cells:
            settings.setdefault(f"{cell.setting.shots}-shot of this command", cell.setting.content)
        require_comparable(settings)

    def _require_free_students(self, cells: Sequence[PlannedCell]) -> None:
        """Raise BadInput where these cells would overwrite students of another run."""
        for cell in cells:
            cell.require_free_students(self.plan.fresh)

    def run(self, prepared: PreparedTeacher | None = None) -> PreparedTeacher | None:
        """Run the cells that are neither done nor running in another process.

        Returns the frozen teacher with its cached features, if there was something to run; another sweep of the same
        teacher, subsets and precision takes it as `prepared`.
        """
        if done := len(self.cells) - len(self.left):
            again = f"remove {self.fresh.path} to start --fresh again" if self.plan.fresh else "--fresh runs them again"
            self.plan.report(f"{done} of {len(self.cells)} cells are done already; {again}")
        if self.left:
            with arithmetic(self.plan.precision, self.device), quiet_writers():
                prepared = prepared or self._prepare_teacher()
                self._run_cells(*prepared)
        return prepared

    def _prepare_teacher(self) -> PreparedTeacher:
        """The frozen teacher, and its entry in the result files."""
        plan, dtype = self.plan, cache_dtype(self.plan.precision)
        network = frozen(plan.teacher).to(self.device, memory_format=torch.channels_last)
        subsets = list(self._subsets_left().values())
        teacher = CachedTeacher(network, plan.dataset.normalization, plan.dataset.test(), subsets, plan.memory, dtype)
        started = perf_counter()
        plan.report(f"computing the teacher's features and test accuracy on {len(teacher.test_labels):,} images")
        accuracy = teacher.accuracy(nn.Identity(), len(network))
        plan.report(f"teacher {plan.teacher_file}: test accuracy {accuracy:.2f}%{doubt(accuracy, network.classes)}")
        seconds, count = perf_counter() - started, len(teacher.test_labels)
        return teacher, {
            "file": str(plan.teacher_file),
            "accuracy": accuracy,
            "test_images": count,
            "seconds": seconds,
        }

    def _subsets_left(self) -> dict[int, np.ndarray]:
        """The few-shot images of the cells that are left, by N."""
        return {cell.setting.shots: cell.images for cell in sorted(self.left, key=lambda cell: cell.setting.shots)}

    def _run_cells(self, teacher: CachedTeacher, record: dict[str, Any]) -> None:
        subsets, names = self._subsets_left(), self.plan.dataset.class_names()
        for shots, images in subsets.items():
            if self.plan.method.all_views and (missing := teacher.not_cached(len(images))):
                self.plan.report(f"N = {shots}: {missing}")
        for shots, images in subsets.items():
            draw = partial(pictures.few_shot_images, images, shots, names)
            write_if_possible(self.plan, f"few-shot images/N = {shots:02d}", draw)
        count = f"{len(self.left)} {'cell' if len(self.left) == 1 else 'cells'}"
        self.plan.report(f"{count}, of N = {', '.join(map(str, subsets))}")
        runner, summarized = CellRunner(self.plan, self.device, teacher, record), -math.inf
        with bar(desc="all cells", total=len(self.left), unit="cell") as cells_done:
            for cell in self.left:
                self.plan.report(f"{cell.name}: {_run_if_free(cell, runner)}")
                if perf_counter() - summarized > SUMMARY_SECONDS or cell is self.left[-1]:
                    summarize_so_far(self.plan)
                    summarized = perf_counter()
                cells_done.update()


def _run_if_free(cell: PlannedCell, runner: CellRunner) -> str:
    """Run the cell unless another process does. Returns the message for the user."""
    try:
        with cell.lock():
            if cell.is_done():
                return "done by another process"
            with cell.lock_students():
                return runner.run(cell)
    except filelock.Timeout:
        return "another process is running it"


def planned(plan: Plan) -> list[PlannedCell]:
    """The cells of a plan, in its order."""
    dataset = plan.dataset
    subsets = {n: subset(dataset, n, plan.subset_seed, plan.data_path) for n in sorted({n for n, _ in plan.cells})}
    subset_sha256 = {n: files.sha256(images.tobytes()) for n, images in subsets.items()}
    teacher_sha256, test_sha256 = checkpoints.weights_sha256(plan.teacher), dataset.test().sha256()

    def cell(key: CellKey) -> PlannedCell:
        shots, trial = key
        setting = Setting(
            dataset=dataset.name,
            shots=shots,
            trial=trial,
            seed=plan.seed,
            subset_seed=plan.subset_seed,
            precision=plan.precision,
            teacher_sha256=teacher_sha256,
            subset_sha256=subset_sha256[shots],
            test_sha256=test_sha256,
            normalization=dataset.normalization.content,
            recipe=plan.recipe,
            method=plan.method,
        )
        result = results.path_of(plan.output_dir, *key)
        architecture, method = plan.teacher.architecture, plan.method.name
        return PlannedCell(
            setting,
            subsets[shots],
            result,
            students.paths(plan.student_dir, architecture, method, dataset.name, *key),
            students.record(dataset, teacher_sha256, result, plan.student_dir),
        )

    return [cell(key) for key in plan.cells]


def begin(sweeps: Sequence[Sweep]) -> None:
    """Remove what --fresh replaces, of all or, if one of the cells is running now, of none; then find what is left."""
    replacing = [sweep.fresh for sweep in sweeps if sweep.replaces]
    for fresh in replacing:
        fresh.require_none_running()
    for fresh in replacing:
        fresh.remove_outdated()
    for sweep in sweeps:
        sweep.find_left()


def run(plans: Iterable[Plan], device: torch.device) -> bool:
    """Run the cells of all plans, which have the same teacher, subsets and precision; whether one has failed.

    Raises BadInput before any is run.
    """
    sweeps, prepared = [Sweep(plan, device, begins=False) for plan in plans], None
    begin(sweeps)
    for sweep in sweeps:
        prepared = sweep.run(prepared)
    for sweep in sweeps:
        sweep.fresh.end()
    return any_failed(result for sweep in sweeps for result in results_of(sweep.plan))


def summarize(plan: Plan) -> list[results.Result]:
    """Write and report the table of all results. Returns those of the plan's cells, by N and trial."""
    _, text = write_summary(plan.output_dir)
    plan.report(text)
    return results_of(plan)


def results_of(plan: Plan) -> list[results.Result]:
    """Those of the plan's cells that there are, by N and trial."""
    paths = (results.path_of(plan.output_dir, *cell) for cell in sorted(plan.cells))
    return [results.read(path) for path in paths if path.exists()]


def any_failed(found: Iterable[results.Result]) -> bool:
    return any(result["status"] == "failed" for result in found)


def summarize_so_far(plan: Plan) -> None:
    """Write table and figure of the results that there are. Where that fails, say why; the cells go on."""
    try:
        if results.paths(plan.output_dir):
            write_summary(plan.output_dir)
    except (BadInput, OSError) as error:
        plan.report(f"the table could not be written: {error}")
