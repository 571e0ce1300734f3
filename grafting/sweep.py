"""A sweep: cells over N and trials, their result files, the table and the curves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from data.datasets import ImageDataset
from data.fewshot import subset
from grafting.cell import Cell, Setting
from grafting.distillation import Curve, NotFinite, accuracy
from grafting.recipes import Recipe
from grafting.store import StoredTeacher
from models.vgg import BlockwiseVGG, frozen, name_of
from utils import files, machine, results
from utils.curves import CellCurves, write_accuracy_over_shots


@dataclass(frozen=True)
class Plan:
    """What to run. memory: bytes for what is kept of the teacher. report: told a line when a cell is done."""

    dataset: ImageDataset
    recipe: Recipe
    teacher: BlockwiseVGG
    teacher_file: Path
    shots: tuple[int, ...]
    trials: int
    seed: int
    subset_seed: int
    eval_every: int
    data_path: Path
    output_dir: Path
    student_dir: Path
    memory: int
    fresh: bool
    report: Callable[[str], None]


class Sweep:
    """The cells of a plan. `run()` returns how many failed."""

    def __init__(self, plan: Plan, device: torch.device):
        self.plan = plan
        self.device = device
        for directory in (plan.output_dir, plan.student_dir):
            files.require_writable(directory)
        self.subsets = {shots: subset(plan.dataset, shots, plan.subset_seed, plan.data_path) for shots in plan.shots}
        self.teacher_sha256 = files.sha256_of_file(plan.teacher_file)

    def run(self) -> int:
        """Run what is not done yet, then write and report the table. Raises BadInput before any work is lost."""
        cells = [(shots, trial) for shots in self.plan.shots for trial in range(self.plan.trials)]
        left = [cell for cell in cells if not self._finished(*cell)]
        if len(left) < len(cells):
            self.plan.report(f"{len(cells) - len(left)} of {len(cells)} cells are done already; --fresh redoes them")
        if left:
            self._run_cells(left)
        return self._summarise(cells)

    def _finished(self, shots: int, trial: int) -> bool:
        path = results.path_of(self.plan.output_dir, shots, trial)
        if self.plan.fresh or not path.exists():
            return False
        self._setting(shots, trial).require_same(results.read(path)["setting"], path)
        return True

    def _run_cells(self, cells: list[tuple[int, int]]) -> None:
        plan = self.plan
        network = frozen(plan.teacher).to(self.device, memory_format=torch.channels_last)
        subsets = list(self.subsets.values())
        teacher = StoredTeacher(network, plan.dataset.normalization, plan.dataset.test(), subsets, plan.memory)
        reached = accuracy(nn.Identity(), teacher.test_batches(len(network)))
        plan.report(f"teacher {plan.teacher_file}: test accuracy {reached:.2f}%")
        epochs = sum(phase.epochs for phase in plan.recipe.phases)
        with tqdm(total=len(cells), unit="cell", disable=None, position=0) as outer:
            for shots, trial in cells:
                name = f"{shots}-shot trial {trial}"
                with tqdm(total=epochs, unit="epoch", desc=name, disable=None, position=1, leave=False) as inner:
                    plan.report(f"{name}: {self._run_cell(shots, trial, teacher, reached, inner)}")
                outer.update()

    def _run_cell(self, shots: int, trial: int, teacher: StoredTeacher, reached: float, bar: tqdm) -> str:
        """Run one cell, write its result, and say in a line how it went."""
        plan, setting = self.plan, self._setting(shots, trial)
        checkpoint = results.path_of(plan.output_dir, shots, trial).with_suffix(".checkpoint.pt")
        if plan.fresh:
            checkpoint.unlink(missing_ok=True)
        started = perf_counter()
        images = self.subsets[shots]
        views = teacher.few_shot(images)
        prepared = perf_counter() - started
        curves = CellCurves(plan.output_dir, shots, trial, setting.identity, images)
        students = self._student_files(shots, trial)
        watch = partial(_watch, curves, bar)
        cell = Cell(setting, teacher, views, plan.eval_every, checkpoint, students, watch)
        try:
            cell.run()
            outcome: dict[str, Any] = {"status": "done", **_figures(cell.curves["L3"])}
            line = f"best {outcome['best']:.2f}% (epoch {outcome['best_epoch']}), last {outcome['last']:.2f}%"
        except NotFinite as failure:
            outcome = {"status": "failed", "phase": failure.phase, "epoch": failure.epoch}
            line = f"failed: {failure}"
        finally:
            curves.close()
        seconds = {"features": prepared} | {
            what: sum(curve.seconds[what] for curve in cell.curves.values()) for what in ("training", "evaluation")
        }
        files.write_json(
            results.path_of(plan.output_dir, shots, trial),
            {
                **outcome,
                "setting": setting.identity,
                "teacher": {"file": str(plan.teacher_file), "accuracy": reached},
                "phases": {name: _phase_figures(curve) for name, curve in cell.curves.items()},
                "seconds": seconds,
                "eval_every": plan.eval_every,
                "students": {kind: str(path) for kind, path in students.items()},
                "machine": machine.description(self.device),
                "command": sys.argv,
            },
        )
        checkpoint.unlink(missing_ok=True)
        return f"{line}, {sum(seconds.values()):.0f} s"

    def _setting(self, shots: int, trial: int) -> Setting:
        plan = self.plan
        subset_sha256 = files.sha256(self.subsets[shots].tobytes())
        return Setting(
            plan.dataset.name,
            shots,
            trial,
            plan.seed,
            plan.subset_seed,
            self.teacher_sha256,
            subset_sha256,
            plan.recipe,
        )

    def _student_files(self, shots: int, trial: int) -> dict[str, Path]:
        """The released names, with the trial added."""
        start = f"{name_of(self.plan.teacher.architecture)}-student-graft"
        end = f"{self.plan.dataset.name}-{shots}perclass-trial{trial}"
        block, net = (self.plan.student_dir / f"{start}-{kind}-{end}" for kind in ("block", "net"))
        return {
            "stage 1": block.with_name(f"{block.name}.pth"),
            "best": net.with_name(f"{net.name}.pth"),
            "last": net.with_name(f"{net.name}-last.pth"),
        }

    def _summarise(self, cells: list[tuple[int, int]]) -> int:
        plan = self.plan
        found = results.read_all(plan.output_dir)
        table = results.rows(found, plan.recipe.published, plan.recipe.published_teacher)
        write_accuracy_over_shots(plan.output_dir, table)
        plan.report(results.write_table(plan.output_dir, table))
        asked = [r for r in found if (r["setting"]["shots"], r["setting"]["trial"]) in cells]
        return sum(result["status"] == "failed" for result in asked)


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
