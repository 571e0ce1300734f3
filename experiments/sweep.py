"""A sweep: which cells to run, in which order, each by one process at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import Any

import filelock
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from acceleration.feature_cache import CachedTeacher
from data.fewshot import subset
from data.views import VIEWS
from experiments import pictures, results, students
from experiments.cell import Cell, setting_in
from experiments.fresh import Fresh
from experiments.plan import CellKey, Plan
from experiments.setting import Setting, require_comparable
from experiments.summary import write_summary
from experiments.tensorboard import RunningCurves, quiet_writers, write_picture
from grafting.distillation import Curve, NotFinite
from grafting.teacher import Views
from models import checkpoints, records
from models.vgg import frozen
from utils import files, machine
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
        shots = sorted({shots for shots, _ in plan.cells})
        self.subsets = {n: subset(plan.dataset, n, plan.subset_seed, plan.data_path) for n in shots}
        self.subset_sha256 = {n: files.sha256(images.tobytes()) for n, images in self.subsets.items()}
        self.teacher_sha256 = checkpoints.weights_sha256(plan.teacher)
        self.test_sha256 = plan.dataset.test().sha256()
        settings = [self._setting(cell).content for cell in sorted(plan.cells)]
        self.fresh = Fresh(plan.output_dir, self._cell_files(), settings)
        self.replaces = plan.fresh and plan.is_leader
        if self.replaces and not self.fresh.continues():
            self._require_comparable(except_for=plan.cells)
            self._require_free_students(plan.cells)
        self.left: list[CellKey] = []
        if begins:
            begin([self])

    def find_left(self) -> None:
        """Find the cells that have no result. Raises BadInput where one could not be run or continued."""
        plan = self.plan
        self.left = [cell for cell in plan.cells if not self._is_done(cell)]
        for cell in set(plan.cells) - set(self.left):
            self._checkpoint(cell).unlink(missing_ok=True)  # of a cell that was killed just after its last write
        self._require_comparable()
        self._require_free_students(self.left)
        for cell in self.left:
            self._require_own_checkpoint(cell)

    def _require_comparable(self, except_for: Sequence[CellKey] = ()) -> None:
        """Raise BadInput now if the table at the end could not be made. except_for: cells that will be run again."""
        outdated = [self._result_file(cell) for cell in except_for]
        there = results.read_all(self.plan.output_dir, outdated)
        first_of_shots = {shots: (shots, trial) for shots, trial in reversed(self.plan.cells)}
        ours = {f"{shots}-shot of this command": self._setting(cell).content for shots, cell in first_of_shots.items()}
        require_comparable({**{results.name_of(result): result["setting"] for result in there}, **ours})

    def _require_own_checkpoint(self, cell: CellKey) -> None:
        """Raise BadInput for a checkpoint that is damaged or of other settings."""
        try:
            if self._checkpoint(cell).exists():
                self._setting(cell).require_same(setting_in(self._checkpoint(cell)), self._checkpoint(cell))
        except BadInput:
            if self._checkpoint(cell).exists():  # if not, another process has just finished the cell
                raise

    def _require_free_students(self, cells: Sequence[CellKey]) -> None:
        """Raise BadInput where these cells would overwrite students of another run."""
        for cell in cells:
            written, result = self._student_files(cell).values(), self._record(cell)["result"]
            students.require_free(written, self._setting(cell).content, result, self.plan.fresh)

    def _record(self, cell: CellKey) -> dict[str, Any]:
        """What a student's record says besides its setting."""
        plan = self.plan
        return students.record(plan.dataset, self.teacher_sha256, self._result_file(cell), plan.student_dir)

    def _student_files(self, cell: CellKey) -> dict[str, Path]:
        plan = self.plan
        return students.paths(plan.student_dir, plan.teacher.architecture, plan.method.name, plan.dataset.name, *cell)

    @property
    def shots_left(self) -> list[int]:
        return sorted({shots for shots, _ in self.left})

    def run(self, prepared: PreparedTeacher | None = None) -> PreparedTeacher | None:
        """Run the cells that are neither done nor running in another process.

        Returns the frozen teacher with its cached features, if there was something to run; another sweep of the same
        teacher, subsets and precision takes it as `prepared`.
        """
        if len(self.left) < len(self.plan.cells):
            done = len(self.plan.cells) - len(self.left)
            advice = (
                f"remove {self.fresh.path} to start --fresh again" if self.plan.fresh else "--fresh runs them again"
            )
            self.plan.report(f"{done} of {len(self.plan.cells)} cells are done already; {advice}")
        if self.left:
            with arithmetic(self.plan.precision, self.device), quiet_writers():
                prepared = prepared or self._prepare_teacher()
                self._run_cells(*prepared)
        return prepared

    def _prepare_teacher(self) -> PreparedTeacher:
        """The frozen teacher, and its entry in the result files."""
        plan, dtype = self.plan, cache_dtype(self.plan.precision)
        network = frozen(plan.teacher).to(self.device, memory_format=torch.channels_last)
        subsets = [self.subsets[shots] for shots in self.shots_left]
        teacher = CachedTeacher(network, plan.dataset.normalization, plan.dataset.test(), subsets, plan.memory, dtype)
        started = perf_counter()
        plan.report(f"computing the teacher's features and test accuracy on {len(teacher.test_labels):,} images")
        accuracy = teacher.accuracy(nn.Identity(), len(network))
        plan.report(f"teacher {plan.teacher_file}: test accuracy {accuracy:.2f}%")
        seconds, count = perf_counter() - started, len(teacher.test_labels)
        return teacher, {
            "file": str(plan.teacher_file),
            "accuracy": accuracy,
            "test_images": count,
            "seconds": seconds,
        }

    def _run_cells(self, teacher: CachedTeacher, record: dict[str, Any]) -> None:
        for shots in self.shots_left if self.plan.method.all_views else ():
            if missing := teacher.not_cached(len(self.subsets[shots])):
                self.plan.report(f"N = {shots}: {missing}")
        self._write_few_shot_images()
        count = f"{len(self.left)} {'cell' if len(self.left) == 1 else 'cells'}"
        self.plan.report(f"{count}, of N = {', '.join(map(str, self.shots_left))}")
        summarized = -math.inf
        with bar(desc="all cells", total=len(self.left), unit="cell") as cells_done:
            for cell in self.left:
                line = self._run_if_free(cell, teacher, record)
                self.plan.report(f"{results.cell_name(*cell)}: {line}")
                if perf_counter() - summarized > SUMMARY_SECONDS or cell == self.left[-1]:
                    summarize_so_far(self.plan)
                    summarized = perf_counter()
                cells_done.update()

    def _is_done(self, cell: CellKey) -> bool:
        """Whether the cell has a result. Raises BadInput if it was made with other settings."""
        path = self._result_file(cell)
        if not path.exists():
            return False
        self._setting(cell).require_same(results.read(path)["setting"], path)
        return True

    def _run_if_free(self, cell: CellKey, teacher: CachedTeacher, record: dict[str, Any]) -> str:
        """Run the cell unless another process does. Returns the message for the user."""
        try:
            with self._lock(cell):
                if self._is_done(cell):
                    return "done by another process"
                with self._lock_students(cell):
                    return self._run_cell(cell, teacher, record)
        except filelock.Timeout:
            return "another process is running it"

    def _run_cell(self, key: CellKey, teacher: CachedTeacher, teacher_record: dict[str, Any]) -> str:
        """Run one cell and write its result. Returns the message for the user."""
        self._require_free_students([key])  # again: another run may have written some meanwhile
        plan, setting = self.plan, self._setting(key)
        result_file, checkpoint, written = self._result_file(key), self._checkpoint(key), self._student_files(key)
        for path in (result_file, checkpoint, *written.values(), *map(records.path_of, written.values())):
            files.remove_leftovers(path)
        started = perf_counter()
        images, cached = self.subsets[setting.shots], plan.method.all_views
        if cached and (count := teacher.images_to_compute(images)):
            plan.report(
                f"{results.cell_name(*key)}: first the teacher's features of {count} images, each in {VIEWS} views"
            )
        views = teacher.few_shot(images) if cached else Views(teacher, images)
        features_seconds = perf_counter() - started
        curves = RunningCurves(plan.output_dir, setting.content, teacher_record["accuracy"], plan.report)
        process = {
            "machine": machine.description(self.device),
            "command": sys.orig_argv[1:],  # unlike sys.argv as it was typed, without folders of this machine
            "eval_every": plan.eval_every,
            "cached_starts": teacher.affordable_starts(len(images)) if cached else None,
            "test_predictions_settled_by": teacher.settled,  # counts on while the cell runs
        }
        teacher.settled.clear()
        phases = plan.method.phases(plan.recipe)
        *before, epochs = accumulate((phase.epochs for phase in phases), initial=0)
        epochs_done = bar(desc=results.cell_name(*key), unit="epoch", total=epochs)
        epochs_before = dict(zip((phase.name for phase in phases), before, strict=True))
        after_epoch = partial(_after_epoch, curves, epochs_done, epochs_before)
        cell = Cell(
            setting, teacher, views, plan.eval_every, checkpoint, written, self._record(key), process, after_epoch
        )
        failure = None
        try:
            try:
                cell.run()
            except NotFinite as error:
                failure = error
            process["peak_gpu_memory"] = machine.peak_gpu_memory(self.device)
            process["test_predictions_settled_by"] = dict(teacher.settled)  # without those of the confusion matrix
            content = results.content(cell, failure, teacher_record, features_seconds)
            curves.finish(content)
        finally:
            curves.close()
            epochs_done.refresh()  # its last state: between updates tqdm waits
            epochs_done.close()
        if not failure:
            self._write_confusion(key, teacher, cell)
        files.write_json(result_file, content)
        checkpoint.unlink(missing_ok=True)
        if failure:
            return f"failed: {failure}"
        seconds = content["seconds"]["features"] + content["seconds"]["training"] + content["seconds"]["evaluation"]
        best, epoch, last = (content[what] for what in ("best", "best_epoch", "last"))
        return f"best {best:.2f}% (epoch {epoch}), last {last:.2f}%, {seconds:.0f} s"

    def _write_few_shot_images(self) -> None:
        """The images of every N that is left, for TensorBoard."""
        names = self.plan.dataset.class_names()
        for shots in self.shots_left:
            draw = partial(pictures.few_shot_images, self.subsets[shots], shots, names)
            self._write_picture(f"few-shot images/N = {shots:02d}", draw)

    def _write_confusion(self, key: CellKey, teacher: CachedTeacher, cell: Cell) -> None:
        """The confusion matrices of teacher and student, for TensorBoard."""
        matrices = pictures.confusion(teacher, cell.current)
        shots, trial = key
        draw = partial(pictures.confusion_picture, matrices, self.plan.dataset.class_names())
        self._write_picture(f"confusion matrix/N = {shots:02d}, trial {trial}", draw)

    def _write_picture(self, tag: str, draw: Callable[[], np.ndarray]) -> None:
        """Draw a picture for TensorBoard. No result depends on it."""
        try:
            write_picture(self.plan.output_dir, tag, draw())
        except OSError as error:
            self.plan.report(f"the picture {tag!r} could not be written: {error.strerror or error}")

    def _lock(self, cell: CellKey) -> AbstractContextManager:
        path = self._result_file(cell).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path).acquire(timeout=0)

    def _lock_students(self, cell: CellKey) -> AbstractContextManager:
        """Lock the cell's students. Raises BadInput if a run with another output directory is writing them."""
        student = self._student_files(cell)["best"]
        try:
            return filelock.FileLock(student.with_name(f".{student.stem}.lock")).acquire(timeout=0)
        except filelock.Timeout:
            raise BadInput(f"{student}: another run is writing it; another --student_dir keeps both") from None

    def require_none_running(self) -> None:
        """Raise BadInput if another process is running one of the cells."""
        for cell in self.plan.cells:
            with self._lock_for_fresh(cell):
                pass

    def remove_outdated(self) -> None:
        """Remove the results and checkpoints that --fresh replaces."""
        self.fresh.begin()
        for cell in self.plan.cells:
            with self._lock_for_fresh(cell):
                self.fresh.remove_outdated((self._result_file(cell), self._checkpoint(cell)))

    def _lock_for_fresh(self, cell: CellKey) -> AbstractContextManager:
        try:
            return self._lock(cell)
        except filelock.Timeout:
            path = self._result_file(cell)
            raise BadInput(f"--fresh: another process is running the cell of {path}; stop that process first") from None

    def _result_file(self, cell: CellKey) -> Path:
        return results.path_of(self.plan.output_dir, *cell)

    def _checkpoint(self, cell: CellKey) -> Path:
        return self._result_file(cell).with_suffix(".checkpoint.pt")

    def _cell_files(self) -> list[tuple[Path, Path]]:
        return [(self._result_file(cell), self._checkpoint(cell)) for cell in self.plan.cells]

    def _setting(self, cell: CellKey) -> Setting:
        plan, (shots, trial) = self.plan, cell
        return Setting(
            dataset=plan.dataset.name,
            shots=shots,
            trial=trial,
            seed=plan.seed,
            subset_seed=plan.subset_seed,
            precision=plan.precision,
            teacher_sha256=self.teacher_sha256,
            subset_sha256=self.subset_sha256[shots],
            test_sha256=self.test_sha256,
            normalization=plan.dataset.normalization.content,
            recipe=plan.recipe,
            method=plan.method,
        )


def begin(sweeps: Sequence[Sweep]) -> None:
    """Remove what --fresh replaces, of all or, if one of the cells is running now, of none; then find what is left.

    One lock at a time is held: those of many cells would be more files than a process may have open. A cell that
    another process starts meanwhile is refused; the same command then continues.
    """
    replacing = [sweep for sweep in sweeps if sweep.replaces]
    for sweep in replacing:
        sweep.require_none_running()
    for sweep in replacing:
        sweep.remove_outdated()
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


def _after_epoch(
    curves: RunningCurves, epochs_done: tqdm, epochs_before: dict[str, int], phase: str, curve: Curve
) -> None:
    """Update the TensorBoard curves and the progress bar, which shows the loss and the last accuracy."""
    epochs_done.set_postfix_str(progress(phase, curve), refresh=False)
    epochs_done.update(epochs_before[phase] + curve.epoch - epochs_done.n)
    curves(phase, curve)


def progress(phase: str, curve: Curve) -> str:
    """A phase so far: "L3, loss 0.0123, test 91.18%"."""
    accuracy = f", test {curve.accuracies[max(curve.accuracies)]:.2f}%" if curve.accuracies else ""
    return f"{phase}, loss {curve.losses[-1]:.3g}{accuracy}"
