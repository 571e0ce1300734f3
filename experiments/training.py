"""A cell in training: what a method asks for (grafting/method.py), and the checkpoint that a restart continues from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from torch import nn

from acceleration.feature_cache import CachedTeacher
from experiments.setting import require_same
from grafting.distillation import Curve, Distillation, student_accuracy
from grafting.inputs import Inputs
from grafting.mixed_views import MixedInputs
from grafting.recipes import Phase
from grafting.start import begin_fitted, copy_blocks
from grafting.students import plain_student
from grafting.teacher import FrozenTeacher
from models import checkpoints, records
from models.checkpoints import on_cpu
from utils import files
from utils.seeds import torch_generator

if TYPE_CHECKING:
    from experiments.cell import Cell
    from experiments.job import Job

CHECKPOINT_SECONDS = 20.0  # between checkpoints: a power cut loses about this much work
KIND = "a cell's checkpoint; remove it to start the cell again"
AfterEpoch = Callable[[str, Curve], None]  # a callback: phase, and its curve so far


class CellTraining:
    """A running cell, from fresh networks to the students' files.

    process: what the result file says about this process: machine, command, flags that do not affect the numbers.
    after_epoch: called with a phase's name and curve after each of its epochs.
    """

    def __init__(self, cell: Cell, teacher: FrozenTeacher, process: dict[str, Any], after_epoch: AfterEpoch):
        self.cell = cell
        self.method = cell.job.method_at(cell.shots)
        self.teacher = teacher
        self.images = cell.images
        self.process = process
        self.after_epoch = after_epoch
        self.seed_key = (cell.setting["seed"], cell.shots, cell.trial)
        fresh = self.method.fresh(teacher, torch_generator(*self.seed_key, "scions"))
        self.networks = [network.to(teacher.device) for network in fresh]
        self.curves: dict[str, Curve] = {}
        self.written: dict[str, str] = {}  # paths of the students' files, some perhaps by an earlier process
        self.earlier_processes: list[dict[str, Any]] = []
        self.current: Distillation | None = None
        self.stage1_joined: dict[str, float] | None = None  # test accuracy (%) of stage 1's scions, and its seconds
        self.seconds = {"features": 0.0, "start": 0.0, "saving": 0.0}
        self._restored: dict[str, Any] | None = None
        self._saved_at = monotonic()

    @cached_property
    def inputs(self) -> Inputs:
        """The few-shot images; their features are cached where the teacher caches any."""
        job, views = self.cell.job, self.teacher.views.count
        if job.mixes_views:
            return self._mixed_inputs()
        epochs = sum(phase["epochs"] for phase in self.cell.setting["schedule"])
        if not isinstance(self.teacher, CachedTeacher):
            return Inputs(self.teacher, self.images)
        if not self.teacher.caches(epochs):
            more = f"an image has {views:,} views, and only {epochs} epochs show one"
            job.report_once(f"the teacher's features are computed at every step: {more}")
            return Inputs(self.teacher, self.images)
        started = perf_counter()
        self.process["cached_starts"] = self.teacher.affordable_starts(len(self.images) * views)
        self._report_not_cached(len(self.images) * views)
        if count := self.teacher.images_to_compute(self.images):
            there = f" more images ({len(self.images) - count} are cached)" if count < len(self.images) else " images"
            job.report(f"{self.cell.name}: first the teacher's features of {count}{there}, each in {views} views")
        inputs = self.teacher.inputs(self.images)
        self.seconds["features"] += perf_counter() - started
        return inputs

    def _mixed_inputs(self) -> Inputs:
        of, started = (self.cell.setting["seed"], self.cell.shots), perf_counter()
        if not isinstance(self.teacher, CachedTeacher):
            return MixedInputs(self.teacher, self.images, *of)
        inputs = self.teacher.mixed_inputs(self.images, *of)
        count = len(inputs) * inputs.views
        self.process["cached_starts"] = self.teacher.affordable_starts(count)
        self._report_not_cached(count)
        self.seconds["features"] += perf_counter() - started
        return inputs

    def _report_not_cached(self, views: int) -> None:
        if missing := self.teacher.not_cached(views):
            self.cell.job.report_once(f"N = {self.cell.shots}: {missing}")

    def run(self) -> None:
        """Train and write the students' files. Raises NotFinite, and BadInput where no student could be written."""
        networks = self.teacher.networks
        self.resume()
        if networks.begins_fitted and not self._restored:
            self._begin_fitted()
        elif networks.copies_blocks and not self._restored:
            copy_blocks(self.networks, self.teacher)
        self.method.train(self.cell.job.recipe, self)
        kinds = (("best", self.current.best), ("last", on_cpu(self.current.scion))) if self.method.has_student else ()
        for kind, state in kinds:
            self._write(kind, lambda path, state=state: self.method.write(self.teacher, state, path))

    def _begin_fitted(self) -> None:
        """Let the networks begin fitted. All trials on the same images begin alike: that is computed once in a row."""
        inputs, started, job = self.inputs, perf_counter(), self.cell.job
        made_of = (self.cell.setting["method"], self.cell.setting["subset_sha256"])
        grafted = self.networks[: len(self.teacher.networks.grafted)]
        if job.last_fitted and job.last_fitted[0] == made_of:
            for network, state in zip(grafted, job.last_fitted[1], strict=True):
                network.load_state_dict(state)
        else:
            job.report(f"{self.cell.name}: fitting the student's blocks to the teacher's")
            begin_fitted(grafted, inputs)
            job.last_fitted = made_of, [on_cpu(network) for network in grafted]
        self.seconds["start"] += perf_counter() - started

    def distill(self, phase: Phase, networks: Sequence[nn.Module]) -> None:
        """Distil the networks, in sequence, over the phase's span, unless the checkpoint is from a later phase."""
        if self._restored and self._restored["phase"] != phase.name:
            return
        current = self._begin(phase, networks)
        if self._restored:
            with files.reading(self.cell.checkpoint, KIND):  # Adam's moments; the learning rates are the setting's
                groups = current.optimizer.state_dict()["param_groups"]
                current.optimizer.load_state_dict({**self._restored["optimizer"], "param_groups": groups})
                current.best, self._restored = self._restored["best"], None
        current.run(self.inputs, self.seed_key, self.cell.job.args.eval_every, self._after_epoch)

    def record(self, phase: Phase, networks: Sequence[nn.Module], loss: float, seconds: float) -> None:
        """Measure networks that were computed without training steps; it counts as one epoch."""
        current = self._begin(phase, networks)
        current.record(loss, seconds, self.teacher, self.cell.job.args.eval_every)
        self.after_epoch(phase.name, current.curve)

    def _begin(self, phase: Phase, networks: Sequence[nn.Module]) -> Distillation:
        self.current = Distillation(phase, nn.Sequential(*networks), self.cell.shots)
        self.current.curve = self.curves.setdefault(phase.name, self.current.curve)
        return self.current

    def keep_stage1(self) -> None:
        """Write stage 1's scions, and measure them joined without stage 2, unless stage 2 has begun."""
        if len(self.curves) > len(self.networks):
            return
        self._write("stage 1", lambda path: checkpoints.write_stage1(self.networks, path))
        started, phase = perf_counter(), self.current.phase
        networks = self.teacher.networks
        joined = nn.Sequential(*self.networks, *self.teacher.blocks[networks.last + 1 :])
        accuracy = student_accuracy(joined, networks.first, self.teacher, phase.name, phase.epochs)
        self.stage1_joined = {"accuracy": accuracy, "seconds": perf_counter() - started}

    def _write(self, kind: str, write: Callable[[Path], None]) -> None:
        """Write a student's file and its record. The record comes first: a file without one would be another run's."""
        path = self.cell.students[kind]
        record = {"student": kind, **self.cell.record, "setting": self.cell.setting}
        records.announce(path, record)
        write(path)
        records.write(path, record)
        self.written[kind] = str(path)

    def _after_epoch(self, current: Distillation) -> None:
        self.after_epoch(current.phase.name, current.curve)
        if monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            self.save()

    def save(self) -> None:
        """Save phase, networks, optimiser, best weights and curves. Random numbers need no state (utils/seeds.py)."""
        started = monotonic()
        files.write_tensors(
            self.cell.checkpoint,
            {
                "setting": json.dumps(self.cell.setting),
                "curves": json.dumps({name: asdict(curve) for name, curve in self.curves.items()}),
                "students": json.dumps(self.written),
                "stage1_joined": json.dumps(self.stage1_joined),
                "seconds": json.dumps(self.seconds),
                "processes": json.dumps([*self.earlier_processes, self.process]),
                "phase": self.current.phase.name,
                "scions": [on_cpu(network) for network in self.networks],
                "optimizer": self.current.optimizer.state_dict(),
                "best": self.current.best,
            },
        )
        self._saved_at = monotonic()
        self.seconds["saving"] += self._saved_at - started

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one. Raises BadInput for one made with other settings."""
        path = self.cell.checkpoint
        if not path.exists():
            return
        saved = files.read_tensors(path, KIND)
        with files.reading(path, KIND):
            require_same(self.cell.setting, json.loads(saved["setting"]), path)
            self.curves = {name: Curve.from_json(fields) for name, fields in json.loads(saved["curves"]).items()}
            self.written = dict(json.loads(saved["students"]))
            self.stage1_joined = json.loads(saved.get("stage1_joined", "null"))  # older checkpoints lack these two
            self.seconds |= json.loads(saved.get("seconds", "{}"))
            self.earlier_processes = list(json.loads(saved["processes"]))
            for network, state in zip(self.networks, saved["scions"], strict=True):
                network.load_state_dict(state)
            if saved["phase"] not in self.curves:
                raise ValueError("its phase has no curve")
        self._restored = saved
        for name, curve in self.curves.items():
            self.after_epoch(name, curve)


def require_trainable(job: Job) -> None:
    """Raise BadInput, before anything is computed, where no student can be made of the job's networks."""
    teacher = job.frozen_teacher()
    networks = [network.to(teacher.device) for network in job.method.fresh(teacher, torch_generator("of no cell"))]
    if teacher.networks.copies_blocks:
        copy_blocks(networks, teacher)
    if teacher.networks.is_own:
        plain_student(teacher, nn.Sequential(*networks))


def setting_in(checkpoint: Path) -> dict[str, Any]:
    """The setting of the cell that made the checkpoint. Raises BadInput for a damaged one."""
    saved = files.read_tensors(checkpoint, KIND)
    with files.reading(checkpoint, KIND):
        return dict(json.loads(saved["setting"]))
