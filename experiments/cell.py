"""A cell: one (data set, N, trial) of a method. Its setting, its files, its locks, its run, its result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import filelock

from acceleration.feature_cache import CachedTeacher
from experiments import pictures, results, students
from experiments.results import Result
from experiments.setting import phase_content, require_same
from experiments.tensorboard import CellCurves, write_picture
from experiments.training import CellTraining, setting_in
from grafting.distillation import Curve, Distillation, NotFinite
from grafting.inputs import Inputs
from grafting.teacher import FrozenTeacher
from models import records
from utils import files, machine
from utils.errors import BadInput
from utils.progress import bar

if TYPE_CHECKING:
    from experiments.job import Job


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
            "subset_sha256": files.sha256(self.images.tobytes()),
            "test_sha256": job.test_sha256,
            "normalization": dataset.normalization.content,
            "method": method,
            "schedule": [phase_content(phase, shots) for phase in job.method.phases(job.recipe)],
        }
        self.result = results.path_of(job.output_dir, shots, trial)
        self.checkpoint = self.result.with_suffix(".checkpoint.pt")
        self.students = students.paths(job.student_dir, job.networks.name, method, dataset.name, shots, trial)
        self.record = {
            **records.deciding(dataset, job.teacher_sha256),
            "result": os.path.relpath(self.result, job.student_dir),
        }

    @property
    def name(self) -> str:
        return results.cell_name(self.shots, self.trial)

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
        students.require_free(self.students.values(), self.setting, self.record["result"], self.job.args.fresh)

    def lock(self) -> AbstractContextManager:
        """Hold the cell, so that no other process runs it. Raises filelock.Timeout if one does."""
        path = self.result.with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path).acquire(timeout=0)

    def _lock_students(self) -> AbstractContextManager:
        """Hold the cell's students. Raises BadInput if a run with another output directory is writing them."""
        student = self.students["best"]
        try:
            return filelock.FileLock(student.with_name(f".{student.stem}.lock")).acquire(timeout=0)
        except filelock.Timeout:
            raise BadInput(f"{student}: another run is writing it; another --student_dir keeps both") from None

    def lock_for_fresh(self) -> AbstractContextManager:
        """As lock(), but raises BadInput."""
        try:
            return self.lock()
        except filelock.Timeout:
            raise BadInput(f"--fresh: another process is running the cell of {self.result}; stop it first") from None

    def run(self, teacher: CachedTeacher, teacher_record: dict[str, Any]) -> str:
        """Run the cell unless another process does, and write its result. Returns a line for the user.

        teacher_record: the teacher's entry in the result file.
        """
        try:
            with self.lock():
                if self.is_done():
                    return "done by another process"
                with self._lock_students():
                    self.require_free_students()  # again: another run may have written some meanwhile
                    self._remove_leftovers()
                    return self._train(teacher, teacher_record)
        except filelock.Timeout:
            return "another process is running it"

    def _train(self, teacher: CachedTeacher, teacher_record: dict[str, Any]) -> str:
        teacher.settled.clear()
        process, failure = self._process(teacher), None
        curves = CellCurves(self.job.output_dir, self.setting, teacher_record["accuracy"], self.job.report)
        with self._epochs_bar() as show:

            def after_epoch(phase: str, curve: Curve) -> None:
                show(phase, curve)
                curves.update(phase, curve)

            training = CellTraining(self, teacher, process, after_epoch)
            try:
                training.run()
            except NotFinite as error:
                failure = error.with_traceback(None)  # the traceback would keep this cell's features in memory
        process["peak_gpu_memory"] = machine.peak_gpu_memory(teacher.device)
        process["test_predictions_settled_by"] = dict(teacher.settled)  # without the confusion matrix's
        result = result_of(training, failure, teacher_record)
        files.write_json(self.result, result)
        self.checkpoint.unlink(missing_ok=True)
        curves.finish(result)
        if failure:
            return f"failed: {failure}"
        if teacher.classes <= pictures.DRAWN_CLASSES:
            self._write_confusion(teacher, training.current)
        return in_short(result)

    def _write_confusion(self, teacher: CachedTeacher, last: Distillation) -> None:
        """The confusion matrices of teacher and student, for TensorBoard. If they cannot be drawn, a line says why."""
        tag, matrices = f"confusion matrix/N = {self.shots:02d}, trial {self.trial}", pictures.confusion(teacher, last)
        try:
            picture = pictures.confusion_picture(matrices, self.job.dataset.class_names())
        except OSError as error:
            self.job.report(f"the picture '{tag}' could not be drawn: {error.strerror or error}")
        else:
            write_picture(self.job.output_dir, tag, picture, self.job.report)

    def inputs(self, teacher: FrozenTeacher, process: dict[str, Any]) -> Inputs:
        """The few-shot images; what is cached of them is said to the user and kept in `process`."""
        if not isinstance(teacher, CachedTeacher):
            return Inputs(teacher, self.images)
        process["cached_starts"] = teacher.affordable_starts(len(self.images))
        if missing := teacher.not_cached(len(self.images)):
            self.job.report_once(f"N = {self.shots}: {missing}")
        if count := teacher.images_to_compute(self.images):
            views = f"each in {teacher.views.count} views"
            self.job.report(f"{self.name}: first the teacher's features of {count} images, {views}")
        return teacher.inputs(self.images)

    def _process(self, teacher: CachedTeacher) -> dict[str, Any]:
        """What the result says about this process. `test_predictions_settled_by` counts on while the cell runs."""
        return {
            "machine": machine.description(teacher.device),
            "command": sys.orig_argv[1:],  # unlike sys.argv as it was typed, without folders of this machine
            "eval_every": self.job.args.eval_every,
            "cached_starts": None,
            "test_predictions_settled_by": teacher.settled,
        }

    def _remove_leftovers(self) -> None:
        """Remove the incomplete files of a killed process. The cell and its students must be locked."""
        student_files = self.students.values()
        for path in (self.result, self.checkpoint, *student_files, *map(records.path_of, student_files)):
            files.remove_leftovers(path)

    @contextmanager
    def _epochs_bar(self) -> Iterator[Callable[[str, Curve], None]]:
        """A progress bar over the epochs of all phases, with the loss and accuracy that were measured last."""
        schedule = self.setting["schedule"]
        *before, epochs = accumulate((step["epochs"] for step in schedule), initial=0)
        epochs_before = dict(zip((step["phase"] for step in schedule), before, strict=True))
        with bar(desc=self.name, unit="epoch", total=epochs) as epochs_done:

            def show(phase: str, curve: Curve) -> None:
                epochs_done.set_postfix_str(progress(phase, curve), refresh=False)
                epochs_done.update(epochs_before[phase] + curve.epoch - epochs_done.n)

            yield show
            epochs_done.refresh()  # its last state: between updates tqdm waits


def result_of(training: CellTraining, failure: NotFinite | None, teacher_record: dict[str, Any]) -> Result:
    """What the result file of a finished or failed cell holds. teacher_record: the teacher's entry."""
    if failure is None:
        outcome: dict[str, Any] = {"status": "done", **figures(training.current.curve)}
    else:
        outcome = {"status": "failed", "phase": failure.phase, "epoch": failure.epoch}
    spent = {what: sum(c.seconds[what] for c in training.curves.values()) for what in ("training", "evaluation")}
    if training.stage1_joined:
        spent["evaluation"] += training.stage1_joined["seconds"]
    return {
        **outcome,
        "setting": training.cell.setting,
        "teacher": teacher_record,
        "stage1_joined": training.stage1_joined,
        "phases": {name: _curve_content(curve) for name, curve in training.curves.items()},
        "seconds": {"features": training.seconds["features"], **spent, "saving": training.seconds["saving"]},
        "students": training.written,
        **training.process,
        "earlier_processes": training.earlier_processes,
    }


def figures(curve: Curve) -> dict[str, Any]:
    """Best test accuracy (%), its epoch, and the last test accuracy."""
    return {
        "best": curve.accuracies[curve.best_epoch],
        "best_epoch": curve.best_epoch,
        "last": curve.accuracies[curve.epoch],
    }


def _curve_content(curve: Curve) -> dict[str, Any]:
    """A curve, with its figures unless it broke off before they were measured."""
    is_whole = curve.epoch in curve.accuracies and any(epoch >= curve.best_from for epoch in curve.accuracies)
    return {**(figures(curve) if is_whole else {}), **asdict(curve)}


def progress(phase: str, curve: Curve) -> str:
    """A phase so far: "L3, loss 0.0123, test 91.18%"."""
    accuracy = f", test {curve.accuracies[max(curve.accuracies)]:.2f}%" if curve.accuracies else ""
    return f"{phase}, loss {curve.losses[-1]:.3g}{accuracy}"


def in_short(result: Result) -> str:
    """A result that is done: "best 91.18% (epoch 94), last 91.03%, 120 s"."""
    seconds = sum(result["seconds"][what] for what in ("features", "training", "evaluation"))
    return f"best {result['best']:.2f}% (epoch {result['best_epoch']}), last {result['last']:.2f}%, {seconds:.0f} s"
