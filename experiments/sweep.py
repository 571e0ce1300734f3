"""A sweep: cells over N and trials, their result files, the table and the curves."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import filelock
import torch
from torch import nn
from tqdm import tqdm

from acceleration.feature_cache import STARTS, CachedTeacher, bytes_cached
from data.datasets import ImageDataset
from data.fewshot import subset
from experiments import results
from experiments.cell import Cell, Setting
from experiments.tensorboard import CellCurves, write_accuracy_over_shots
from grafting.distillation import Curve, NotFinite
from grafting.recipes import Recipe
from models.vgg import BlockwiseVGG, frozen, name_of
from utils import files, machine
from utils.errors import BadInput
from utils.precision import arithmetic, cache_dtype

Place = tuple[int, int]  # (shots, trial)


@dataclass(frozen=True)
class Plan:
    """What to run.

    places: the cells, in the order in which to take them. precision: one of utils.precision. memory: bytes for what
    is kept of the teacher. report: told a line when a cell is done.
    """

    dataset: ImageDataset
    recipe: Recipe
    teacher: BlockwiseVGG
    teacher_file: Path
    places: tuple[Place, ...]
    seed: int
    subset_seed: int
    precision: str
    eval_every: int
    data_path: Path
    output_dir: Path
    student_dir: Path
    memory: int
    fresh: bool
    report: Callable[[str], None]


class Sweep:
    """The cells of a plan. Raises BadInput, before any work is lost, where something is wrong with the plan.

    Several processes may run the same plan, by design or by mistake: each takes the next cell that is neither
    done nor in another's hands. A cell in hand is locked by the operating system, so a killed process lets go.
    """

    def __init__(self, plan: Plan, device: torch.device):
        self.plan = plan
        self.device = device
        for directory in (plan.output_dir, plan.student_dir):
            files.require_writable(directory)
        shots = sorted({shots for shots, _ in plan.places})
        self.subsets = {n: subset(plan.dataset, n, plan.subset_seed, plan.data_path) for n in shots}
        self.subset_sha256 = {n: files.sha256(images.tobytes()) for n, images in self.subsets.items()}
        self.teacher_sha256 = files.sha256_of_file(plan.teacher_file)
        if plan.fresh:
            for place in plan.places:
                self._forget(place)
        self.left = [place for place in plan.places if not self._is_done(place)]

    def run(self) -> None:
        """Run what is neither done nor in another's hands."""
        with arithmetic(self.plan.precision, self.device):
            self._run()

    def _run(self) -> None:
        plan = self.plan
        if len(self.left) < len(plan.places):
            done = len(plan.places) - len(self.left)
            plan.report(f"{done} of {len(plan.places)} cells are done already; --fresh redoes them")
        if not self.left:
            return
        network = frozen(plan.teacher).to(self.device, memory_format=torch.channels_last)
        subsets = [self.subsets[shots] for shots in sorted({shots for shots, _ in self.left})]
        dtype = cache_dtype(plan.precision)
        teacher = CachedTeacher(network, plan.dataset.normalization, plan.dataset.test(), subsets, plan.memory, dtype)
        started = perf_counter()
        reached = teacher.accuracy(nn.Identity(), len(network))
        record = {"file": str(plan.teacher_file), "accuracy": reached, "seconds": perf_counter() - started}
        plan.report(f"teacher {plan.teacher_file}: test accuracy {reached:.2f}%")
        for shots, images in self.subsets.items():
            if teacher.affordable_starts(len(images)) is None:
                needed = math.ceil(bytes_cached(network, len(images), STARTS[:1], dtype) / 1e8) / 10
                plan.report(f"N = {shots}: the teacher is asked anew at every step; --memory {needed} would keep it")
        epochs = sum(phase.epochs for phase in plan.recipe.phases)
        with tqdm(total=len(self.left), unit="cell", disable=None, position=0) as outer:
            for place in self.left:
                name = "{}-shot trial {}".format(*place)
                with tqdm(total=epochs, unit="epoch", desc=name, disable=None, position=1, leave=False) as inner:
                    line = self._run_if_free(place, teacher, record, inner)
                plan.report(f"{name}: {line}")
                outer.update()

    def _is_done(self, place: Place) -> bool:
        """Whether there is a result; raises BadInput if it is not of this plan's settings."""
        path = results.path_of(self.plan.output_dir, *place)
        if not path.exists():
            return False
        self._setting(place).require_same(results.read(path)["setting"], path)
        return True

    def _run_if_free(self, place: Place, teacher: CachedTeacher, record: dict[str, Any], bar: tqdm) -> str:
        """How the cell went, in a line."""
        try:
            with self._lock(place):
                return (
                    "done by another process" if self._is_done(place) else self._run_cell(place, teacher, record, bar)
                )
        except filelock.Timeout:
            return "in another process's hands"

    def _forget(self, place: Place) -> None:
        path = results.path_of(self.plan.output_dir, *place)
        try:
            with self._lock(place):
                path.unlink(missing_ok=True)
                path.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
        except filelock.Timeout:
            raise BadInput(f"--fresh: {path} is in another process's hands; stop that one first") from None

    def _lock(self, place: Place) -> AbstractContextManager:
        path = results.path_of(self.plan.output_dir, *place).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path).acquire(timeout=0)

    def _run_cell(self, place: Place, teacher: CachedTeacher, record: dict[str, Any], bar: tqdm) -> str:
        """Run one cell, write its result, and say in a line how it went."""
        plan, setting = self.plan, self._setting(place)
        path, students = results.path_of(plan.output_dir, *place), self._student_files(place)
        checkpoint = path.with_suffix(".checkpoint.pt")
        for written in (path, checkpoint, *students.values()):
            files.remove_leftovers(written)
        started = perf_counter()
        views = teacher.few_shot(self.subsets[setting.shots])
        prepared = perf_counter() - started
        curves = CellCurves(plan.output_dir, *place, setting.identity, self.subsets[setting.shots])
        cell = Cell(setting, teacher, views, plan.eval_every, checkpoint, students, partial(_watch, curves, bar))
        try:
            cell.run()
            outcome: dict[str, Any] = {"status": "done", **_figures(cell.curves["L3"])}
            line = f"best {outcome['best']:.2f}% (epoch {outcome['best_epoch']}), last {outcome['last']:.2f}%"
        except NotFinite as failure:
            outcome = {"status": "failed", "phase": failure.phase, "epoch": failure.epoch}
            line = f"failed: {failure}"
        finally:
            curves.close()
        spent = {what: sum(c.seconds[what] for c in cell.curves.values()) for what in ("training", "evaluation")}
        content = {
            **outcome,
            "setting": setting.identity,
            "teacher": record,
            "phases": {name: _phase_figures(curve) for name, curve in cell.curves.items()},
            "seconds": {"features": prepared, **spent, "saving": cell.saving_seconds},
            "eval_every": plan.eval_every,
            "cuts_kept": teacher.affordable_starts(len(self.subsets[setting.shots])),
            "students": {kind: str(written) for kind, written in students.items()},
            "machine": machine.description(self.device),
            "peak_gpu_memory": machine.peak_gpu_memory(self.device),
            "command": sys.argv,
        }
        files.write_json(path, content)
        checkpoint.unlink(missing_ok=True)
        return f"{line}, {prepared + sum(spent.values()):.0f} s"

    def _setting(self, place: Place) -> Setting:
        plan, (shots, trial) = self.plan, place
        return Setting(
            dataset=plan.dataset.name,
            shots=shots,
            trial=trial,
            seed=plan.seed,
            subset_seed=plan.subset_seed,
            precision=plan.precision,
            teacher_sha256=self.teacher_sha256,
            subset_sha256=self.subset_sha256[shots],
            recipe=plan.recipe,
        )

    def _student_files(self, place: Place) -> dict[str, Path]:
        """The released names, with the trial added."""
        start = f"{name_of(self.plan.teacher.architecture)}-student-graft"
        end = "{}-{}perclass-trial{}".format(self.plan.dataset.name, *place)
        names = {"stage 1": f"{start}-block-{end}", "best": f"{start}-net-{end}", "last": f"{start}-net-{end}-last"}
        return {kind: self.plan.student_dir / f"{name}.pth" for kind, name in names.items()}


def summarize(plan: Plan) -> int:
    """Write and report the table of all results there are; how many of the plan's cells failed."""
    found = results.read_all(plan.output_dir)
    table = results.rows(found, plan.recipe.published, plan.recipe.published_teacher)
    write_accuracy_over_shots(plan.output_dir, table)
    plan.report("\n".join([results.write_table(plan.output_dir, table), *results.remarks(found)]))
    planned = [r for r in found if (r["setting"]["shots"], r["setting"]["trial"]) in plan.places]
    return sum(result["status"] == "failed" for result in planned)


def _watch(curves: CellCurves, bar: tqdm, phase: str, curve: Curve) -> None:
    """After an epoch: curves to TensorBoard, and the bar on its way."""
    bar.update(curve.epoch - curves.written[phase])
    curves(phase, curve)
    bar.set_postfix_str(phase, refresh=False)


def _figures(curve: Curve) -> dict[str, Any]:
    return {
        "best": curve.accuracies[curve.best_epoch],
        "best_epoch": curve.best_epoch,
        "last": curve.accuracies[curve.epoch],
    }


def _phase_figures(curve: Curve) -> dict[str, Any]:
    figures = _figures(curve) if curve.epoch in curve.accuracies else {}
    return {**figures, **asdict(curve)}
