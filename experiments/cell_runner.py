"""Runs a cell: its features, its training, its result file; meanwhile TensorBoard's curves and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from time import perf_counter
from typing import Any

import numpy as np
import torch

from acceleration.feature_cache import CachedTeacher
from data.views import VIEWS
from experiments import pictures, results
from experiments.cell import Cell
from experiments.plan import Plan
from experiments.planned_cell import PlannedCell
from experiments.tensorboard import CellCurves, RunningCurves, write_picture
from grafting.distillation import Curve, NotFinite
from grafting.teacher import Views
from utils import files, machine
from utils.progress import bar


class CellRunner:
    """Runs the cells of a plan, which the caller has locked.

    teacher_record: the teacher's entry in the result files.
    """

    def __init__(self, plan: Plan, device: torch.device, teacher: CachedTeacher, teacher_record: dict[str, Any]):
        self.plan = plan
        self.device = device
        self.teacher = teacher
        self.teacher_record = teacher_record

    def run(self, planned: PlannedCell) -> str:
        """Run one cell and write its result. Returns the message for the user."""
        planned.require_free_students(self.plan.fresh)  # again: another run may have written some meanwhile
        planned.remove_leftovers()
        started = perf_counter()
        views = self._views(planned)
        features_seconds = perf_counter() - started
        process, failure = self._process(planned), None
        accuracy = self.teacher_record["accuracy"]
        make_curves = partial(CellCurves, self.plan.output_dir, planned.setting.content, accuracy)
        curves = RunningCurves(make_curves, self.plan.report)
        with closing(curves), self._epochs_bar(planned) as show:

            def after_epoch(phase: str, curve: Curve) -> None:
                show(phase, curve)
                curves(phase, curve)

            cell = Cell(planned, self.teacher, views, self.plan.eval_every, process, after_epoch)
            try:
                cell.run()
            except NotFinite as error:
                failure = error.with_traceback(None)  # the traceback would keep this cell's features in memory
            process["peak_gpu_memory"] = machine.peak_gpu_memory(self.device)
            process["test_predictions_settled_by"] = dict(self.teacher.settled)  # without the confusion matrix's
            result = result_of(cell, failure, self.teacher_record, features_seconds)
            curves.finish(result)
        if not failure:
            self._write_confusion(cell)
        files.write_json(planned.result, result)
        planned.checkpoint.unlink(missing_ok=True)
        return f"failed: {failure}" if failure else in_short(result)

    def _views(self, planned: PlannedCell) -> Views:
        """The cell's few-shot images; for a method that uses all views, with the teacher's features cached."""
        if not self.plan.method.all_views:
            return Views(self.teacher, planned.images)
        if count := self.teacher.images_to_compute(planned.images):
            what = f"the teacher's features of {count} images, each in {VIEWS} views"
            self.plan.report(f"{planned.name}: first {what}")
        return self.teacher.few_shot(planned.images)

    def _process(self, planned: PlannedCell) -> dict[str, Any]:
        """What the result says about this process. `test_predictions_settled_by` counts on while the cell runs."""
        starts = self.teacher.affordable_starts(len(planned.images)) if self.plan.method.all_views else None
        self.teacher.settled.clear()
        return {
            "machine": machine.description(self.device),
            "command": sys.orig_argv[1:],  # unlike sys.argv as it was typed, without folders of this machine
            "eval_every": self.plan.eval_every,
            "cached_starts": starts,
            "test_predictions_settled_by": self.teacher.settled,
        }

    @contextmanager
    def _epochs_bar(self, planned: PlannedCell) -> Iterator[Callable[[str, Curve], None]]:
        """A progress bar over the epochs of all phases; its loss and accuracy are those of the last ones measured."""
        phases = self.plan.method.phases(self.plan.recipe)
        *before, epochs = accumulate((phase.epochs for phase in phases), initial=0)
        epochs_before = dict(zip((phase.name for phase in phases), before, strict=True))
        epochs_done = bar(desc=planned.name, unit="epoch", total=epochs)

        def show(phase: str, curve: Curve) -> None:
            epochs_done.set_postfix_str(progress(phase, curve), refresh=False)
            epochs_done.update(epochs_before[phase] + curve.epoch - epochs_done.n)

        try:
            yield show
        finally:
            epochs_done.refresh()  # its last state: between updates tqdm waits
            epochs_done.close()

    def _write_confusion(self, cell: Cell) -> None:
        """The confusion matrices of teacher and student, for TensorBoard, if there are not too many classes."""
        if self.plan.dataset.classes > pictures.DRAWN_CLASSES:
            return
        setting, matrices = cell.setting, pictures.confusion(self.teacher, cell.current)
        draw = partial(pictures.confusion_picture, matrices, self.plan.dataset.class_names())
        write_if_possible(self.plan, f"confusion matrix/N = {setting.shots:02d}, trial {setting.trial}", draw)


def result_of(
    cell: Cell, failure: NotFinite | None, teacher: dict[str, Any], features_seconds: float
) -> results.Result:
    """What the result file of a finished or failed cell holds.

    teacher: its file and test accuracy. features_seconds: time spent on the cache of teacher features.
    """
    if failure is None:
        outcome: dict[str, Any] = {"status": "done", **figures(cell.current.curve)}
    else:
        outcome = {"status": "failed", "phase": failure.phase, "epoch": failure.epoch}
    spent = {what: sum(c.seconds[what] for c in cell.curves.values()) for what in ("training", "evaluation")}
    if cell.stage1_joined:
        spent["evaluation"] += cell.stage1_joined["seconds"]
    return {
        **outcome,
        "setting": cell.setting.content,
        "teacher": teacher,
        "stage1_joined": cell.stage1_joined,
        "phases": {name: _phase_content(curve) for name, curve in cell.curves.items()},
        "seconds": {"features": features_seconds, **spent, "saving": cell.saving_seconds},
        "students": cell.written,
        **cell.process,
        "earlier_processes": cell.earlier_processes,
    }


def figures(curve: Curve) -> dict[str, Any]:
    """Best test accuracy (%), its epoch, and the last test accuracy."""
    return {
        "best": curve.accuracies[curve.best_epoch],
        "best_epoch": curve.best_epoch,
        "last": curve.accuracies[curve.epoch],
    }


def _phase_content(curve: Curve) -> dict[str, Any]:
    """A curve, with its figures unless it broke off before they were measured."""
    is_whole = curve.epoch in curve.accuracies and any(epoch >= curve.best_from for epoch in curve.accuracies)
    return {**(figures(curve) if is_whole else {}), **asdict(curve)}


def write_if_possible(plan: Plan, tag: str, draw: Callable[[], np.ndarray]) -> None:
    """Draw a picture for TensorBoard. No result depends on it."""
    try:
        write_picture(plan.output_dir, tag, draw())
    except OSError as error:
        plan.report(f"the picture {tag!r} could not be written: {error.strerror or error}")


def progress(phase: str, curve: Curve) -> str:
    """A phase so far: "L3, loss 0.0123, test 91.18%"."""
    accuracy = f", test {curve.accuracies[max(curve.accuracies)]:.2f}%" if curve.accuracies else ""
    return f"{phase}, loss {curve.losses[-1]:.3g}{accuracy}"


def in_short(result: results.Result) -> str:
    """A result that is done: "best 91.18% (epoch 94), last 91.03%, 120 s"."""
    seconds = sum(result["seconds"][what] for what in ("features", "training", "evaluation"))
    return f"best {result['best']:.2f}% (epoch {result['best_epoch']}), last {result['last']:.2f}%, {seconds:.0f} s"
