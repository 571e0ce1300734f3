"""A cell: one (data set, N, trial) of a method. Its setting, its files, its locks, its run, its result."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from acceleration.feature_cache import CachedTeacher
from experiments import pictures, results, subsets
from experiments.results import Result
from experiments.setting import phase_content, require_same
from experiments.tensorboard import CellCurves, write_picture
from experiments.training import CellTraining, setting_in
from grafting.distillation import Curve, NotFinite
from models import records
from utils import __version__, files, locks, machine
from utils.errors import BadInput
from utils.text import Log, bar, brief_time, is_terminal, time_left

if TYPE_CHECKING:
    from tqdm import tqdm

    from experiments.job import Job
    from experiments.pace import Pace

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}{postfix}]"  # without a time left that counts epochs


class Cell:
    """A cell of a job, to be run, running or done.

    images: (N * classes, 3, stored, stored) uint8, the few-shot images. setting: everything that decides its numbers.
    result: path of the result file. students: paths of the scions after "stage 1", of the student at its "best" and at
    its "last" epoch. record: what decides their predictions besides the weights (models/records.py), and the result
    that they belong to.
    """

    def __init__(self, job: Job, shots: int, trial: int):
        self.job, self.shots, self.trial = job, shots, trial
        self.images, dataset, method = job.subset(shots), job.dataset, job.method.name
        self.setting = {
            "dataset": dataset.name,
            "shots": shots,
            "trial": trial,
            "seed": job.args.seed,
            "subset_seed": job.subset_seed,
            "precision": job.args.precision,
            "teacher_sha256": job.teacher_sha256,
            "subset_sha256": files.sha256(self.images),
            **job.first_images(shots),
            "test_sha256": job.test_sha256,
            "normalization": dataset.normalization.content,
            "method": method,
            **job.networks_setting,
            "schedule": [phase_content(phase, shots) for phase in job.method_at(shots).phases(job.recipe)],
        }
        self.result = results.path_of(job.output_dir, shots, trial)
        self.checkpoint = self.result.with_suffix(".checkpoint.pt")
        self.was_run = False  # by this process
        self._shown_at = 0.0
        self.students = results.student_paths(job.student_dir, job.networks.name, method, dataset.name, shots, trial)
        self.record = {
            **records.deciding(dataset, job.teacher_sha256),
            "networks": job.networks.base_name,
            "result": os.path.relpath(self.result, job.student_dir),
        }

    @property
    def name(self) -> str:
        of_several = self.job.args.subset_seeds
        return subsets.name_of(self.setting) if of_several else results.cell_name(self.shots, self.trial)

    def is_done(self) -> bool:
        """Whether the cell has a result. Raises BadInput if it was made with other settings."""
        if not self.result.exists():
            return False
        require_same(self.setting, results.read(self.result)["setting"], self.result)
        return True

    def require_own_checkpoint(self) -> None:
        """Raise BadInput for a checkpoint that is damaged or of other settings."""
        try:
            if self.checkpoint.exists():
                require_same(self.setting, setting_in(self.checkpoint), self.checkpoint)
        except BadInput:
            if self.checkpoint.exists():  # if not, another process has just finished the cell
                raise

    def require_free_students(self) -> None:
        """Raise BadInput where the cell would overwrite students of another run."""
        results.require_free_students(self.students.values(), self.setting, self.record["result"], self.job.args.fresh)

    def lock(self) -> AbstractContextManager:
        """Hold the cell, so that no other process runs it. Raises locks.Timeout if one does."""
        return locks.hold(self.result.with_suffix(".lock"))

    def _lock_students(self) -> AbstractContextManager:
        """Hold the cell's students. Raises BadInput if a run with another output directory is writing them."""
        student = self.students["best"]
        try:
            return locks.hold(student.with_name(f".{student.stem}.lock"))
        except locks.Timeout:
            raise BadInput(f"{student}: another run is writing it; another --student_dir keeps both") from None

    @property
    def written(self) -> list[Path]:
        """All that the cell writes, but for pictures and curves."""
        return [self.result, self.checkpoint, *self.students.values(), *map(records.path_of, self.students.values())]

    def remove(self) -> None:
        """Remove all of it. Raises locks.Timeout if a process is running it."""
        with self.lock():
            for path in self.written:
                path.unlink(missing_ok=True)

    def run(self, teacher: CachedTeacher, teacher_record: dict[str, Any], pace: Pace) -> str:
        """Run the cell unless another process does, and write its result. Returns a line for the user.

        pace: of the sweep, in which this cell has begun.
        """
        try:
            held = self.lock()
        except locks.Timeout:
            return "another process is running it"
        with held:
            if self.is_done():
                return "done by another process"
            with self._lock_students():
                self.require_free_students()  # again: another run may have written some meanwhile
                for path in self.written:
                    files.remove_leftovers(path)  # of a killed process
                self.was_run = True
                return self._train(teacher, teacher_record, pace)

    def _train(self, teacher: CachedTeacher, teacher_record: dict[str, Any], pace: Pace) -> str:
        teacher.settled.clear()
        failure, process = None, {"machine": machine.description(teacher.device), "cached_starts": None}
        process["command"] = sys.orig_argv[1:]  # unlike sys.argv as it was typed, without folders of this machine
        process["version"] = __version__
        process["eval_every"] = self.job.args.eval_every
        process["test_predictions_settled_by"] = teacher.settled  # it counts on while the cell runs
        curves = CellCurves(self.job.output_dir, self.setting, teacher_record["accuracy"], self.job.report_once)
        epochs = sum(step["epochs"] for step in self.setting["schedule"])
        so_far: dict[str, Curve] = {}
        with bar(desc=self.name, unit="epoch", total=epochs, bar_format=BAR) as shown:

            def after_epoch(phase: str, curve: Curve) -> None:
                curves.update(phase, curve)
                so_far[phase] = curve  # training's, which is not named here: a cycle would keep its features in memory
                self._show(shown, so_far, pace, phase)

            training = CellTraining(self, teacher, process, after_epoch)
            try:
                training.run()
            except NotFinite as error:
                failure = error.with_traceback(None)  # the traceback would keep this cell's features in memory
            shown.refresh()  # its last state: between updates tqdm waits
        process["peak_gpu_memory"] = machine.peak_gpu_memory(teacher.device)
        process["test_predictions_settled_by"] = dict(teacher.settled)  # without the confusion matrix's
        result = result_of(training, failure, teacher_record)
        files.write_json(self.result, result)
        self.checkpoint.unlink(missing_ok=True)
        curves.close()
        if failure:
            return f"failed: {failure}"
        self._write_pictures(teacher, training)
        return in_short(result)

    def _write_pictures(self, teacher: CachedTeacher, training: CellTraining) -> None:
        """The confusion matrices, and with the first trial the few-shot images."""
        dataset, write = self.job.dataset, partial(write_picture, self.job.output_dir, report=self.job.report_once)
        if self.trial == 0:
            draw = partial(pictures.few_shot_images, self.images, self.shots, dataset.class_names())
            write(f"{dataset.name}, few-shot images/N = {self.shots:02d}", draw)
        if teacher.classes <= pictures.DRAWN_CLASSES:

            def draw_confusion() -> np.ndarray:
                return pictures.confusion_picture(pictures.confusion(teacher, training.current), dataset.class_names())

            write(f"{dataset.name}, confusion matrix/N = {self.shots:02d}, trial {self.trial}", draw_confusion)

    def _show(self, shown: tqdm | Log, curves: Mapping[str, Curve], pace: Pace, phase: str) -> None:
        """What a user sees after an epoch of a phase, once a second, and a line after its last one in a log."""
        curve = curves[phase]
        shown.update(sum(one.epoch for one in curves.values()) - shown.n)
        epochs = next(step["epochs"] for step in self.setting["schedule"] if step["phase"] == phase)
        if curve.epoch < epochs and monotonic() - self._shown_at < 1:
            return
        self._shown_at = monotonic()
        pace.measure(self, curves)
        left = pace.left_of(self, curves)
        shown.set_postfix_str(progress(phase, curve, epochs, left), refresh=False)
        if curve.epoch == epochs and not is_terminal():
            seconds = brief_time(sum(curve.seconds.values()))
            self.job.report(f"{self.name}: {progress(phase, curve, epochs)}; took {seconds}{time_left(left)}")
        pace.predict(self, curves)


def result_of(training: CellTraining, failure: NotFinite | None, teacher_record: dict[str, Any]) -> Result:
    """What the result file of a finished or failed cell holds. teacher_record: the teacher's entry."""
    if failure is None:
        student = content_of(training.current.curve)
        outcome = {"status": "done", **{name: student[name] for name in ("best", "best_epoch", "last")}}
    else:
        outcome = {"status": "failed", "phase": failure.phase, "epoch": failure.epoch}
    spent = {what: sum(c.seconds[what] for c in training.curves.values()) for what in ("training", "evaluation")}
    if training.stage1_joined:
        spent["evaluation"] += training.stage1_joined["seconds"]
    return {
        **outcome,
        "setting": training.cell.setting,
        "networks": training.cell.job.networks.name,
        "teacher": teacher_record,
        "stage1_joined": training.stage1_joined,
        "phases": {name: content_of(curve) for name, curve in training.curves.items()},
        "seconds": {**training.seconds, **spent},
        "students": training.written,
        **training.process,
        "earlier_processes": training.earlier_processes,
    }


def content_of(curve: Curve) -> dict[str, Any]:
    """A curve, with its best test accuracy (%), that epoch, and the last one, unless it broke off before."""
    if curve.epoch not in curve.accuracies or not any(epoch >= curve.best_from for epoch in curve.accuracies):
        return asdict(curve)
    best, last = curve.accuracies[curve.best_epoch], curve.accuracies[curve.epoch]
    return {"best": best, "best_epoch": curve.best_epoch, "last": last, **asdict(curve)}


def progress(phase: str, curve: Curve, epochs: int, left: float | None = None) -> str:
    """A phase so far: "L3, epoch 44 of 100, loss 0.0123, test 91.18%, 3 min left". left: seconds of the cell."""
    accuracy = f", test {curve.accuracies[max(curve.accuracies)]:.2f}%" if curve.accuracies else ""
    return f"{phase}, epoch {curve.epoch} of {epochs}, loss {curve.losses[-1]:.3g}{accuracy}{time_left(left)}"


def in_short(result: Result) -> str:
    """A result that is done: "best 91.18% (epoch 94), last 91.03%, 120 s"."""
    seconds = sum(result["seconds"][what] for what in ("features", "start", "training", "evaluation"))
    return f"best {result['best']:.2f}% (epoch {result['best_epoch']}), last {result['last']:.2f}%, {seconds:.0f} s"
