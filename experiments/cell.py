"""A cell: one (data set, N, trial) of a method, from fresh networks to a student and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from experiments.planned_cell import CHECKPOINT, PlannedCell
from grafting.distillation import Curve, Distillation
from grafting.recipes import Phase, batch_size
from grafting.teacher import FrozenTeacher, Views
from models import checkpoints, records
from models.checkpoints import State, on_cpu
from models.vgg import FIRST_GRAFTED
from utils import files
from utils.seeds import torch_generator

CHECKPOINT_SECONDS = 20.0  # between checkpoints: a power cut loses about this much work
AfterEpoch = Callable[[str, Curve], None]  # a callback: phase, and its curve so far


class Cell:
    """A running cell. `checkpoint()` saves what a restart needs, `resume()` loads it.

    process: what the result file says about this process: machine, command, flags that do not affect the numbers.
    after_epoch: called with a phase's name and curve after each of its epochs.
    """

    def __init__(
        self,
        planned: PlannedCell,
        teacher: FrozenTeacher,
        views: Views,
        eval_every: int | None,
        process: dict[str, Any],
        after_epoch: AfterEpoch,
    ):
        self.planned = planned
        self.setting = setting = planned.setting
        self.teacher = teacher
        self.views = views
        self.eval_every = eval_every
        self.process = process
        self.after_epoch = after_epoch
        self.purpose = (setting.seed, setting.shots, setting.trial)
        fresh = setting.method.networks(teacher.network, torch_generator(*self.purpose, "scions"))
        self.networks = [network.to(teacher.device) for network in fresh]
        self.curves: dict[str, Curve] = {}
        self.written: dict[str, str] = {}  # paths of the students' files, some perhaps by an earlier process
        self.earlier_processes: list[dict[str, Any]] = []
        self.current: Distillation | None = None
        self.stage1_joined: dict[str, float] | None = None  # test accuracy (%) of stage 1's scions, and its seconds
        self._restored: dict[str, Any] | None = None
        self._saved_at = monotonic()
        self.saving_seconds = 0.0

    def run(self) -> None:
        """Train and write the students' files. Raises NotFinite."""
        self.resume()
        self.setting.method.train(self.setting.recipe, self.networks, self.distill, self.keep_stage1)
        self._write_student("best", self.current.best)
        self._write_student("last", on_cpu(self.current.scion))

    def keep_stage1(self) -> None:
        """Write stage 1's scions, and measure them joined without stage 2, unless stage 2 has begun."""
        if len(self.curves) > len(self.setting.recipe.stage1):
            return
        self._write("stage 1", lambda path: checkpoints.write_stage1(self.networks, path))
        started = perf_counter()
        accuracy = self.teacher.accuracy(nn.Sequential(*self.networks), FIRST_GRAFTED)
        self.stage1_joined = {"accuracy": accuracy, "seconds": perf_counter() - started}

    def _write_student(self, kind: str, state: State) -> None:
        self._write(kind, lambda path: self.setting.method.write(self.teacher.network, state, path))

    def _write(self, kind: str, write: Callable[[Path], None]) -> None:
        """Write a student's file and its record. The record comes first: a file without one would be another run's."""
        path = self.planned.students[kind]
        record = {"student": kind, **self.planned.record, "setting": self.setting.content}
        records.announce(path, record)
        write(path)
        records.write(path, record)
        self.written[kind] = str(path)

    def distill(self, phase: Phase, scion: nn.Sequential, distillation: Callable[..., Any] = Distillation) -> None:
        """Distil a scion over the phase's span, unless the checkpoint is from a later phase.

        distillation: a class with the attributes and the run() of Distillation.
        """
        if self._restored and self._restored["phase"] != phase.name:
            return
        self.current = distillation(phase, scion, self.setting.shots)
        if self._restored:
            with files.reading(self.planned.checkpoint, CHECKPOINT):
                restore_adam(self.current.optimizer, self._restored["optimizer"])
                if self._restored["best"] is not None:
                    require_same_layout(self._restored["best"], scion.state_dict())
            self.current.curve = replace(self.curves[phase.name], best_from=phase.best_from)
            self.current.best = self._restored["best"]
            self._restored = None
        self.curves[phase.name] = self.current.curve
        batch = batch_size(self.setting.shots)
        self.current.run(self.teacher, self.views, batch, self.eval_every, self.purpose, self._after_epoch)

    def _after_epoch(self, current: Distillation) -> None:
        self.after_epoch(current.phase.name, current.curve)
        has_state = self.current.optimizer is not None  # a phase without an optimiser is done again
        if has_state and monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Save phase, networks, optimiser, best weights and curves. Random numbers need no state (utils/seeds.py)."""
        started = monotonic()
        files.write_tensors(
            self.planned.checkpoint,
            {
                "setting": json.dumps(self.setting.content),
                "curves": json.dumps({name: asdict(curve) for name, curve in self.curves.items()}),
                "students": json.dumps(self.written),
                "stage1_joined": json.dumps(self.stage1_joined),
                "processes": json.dumps([*self.earlier_processes, self.process]),
                "phase": self.current.phase.name,
                "scions": [on_cpu(network) for network in self.networks],
                "optimizer": self.current.optimizer.state_dict(),
                "best": self.current.best,
            },
        )
        self._saved_at = monotonic()
        self.saving_seconds += self._saved_at - started

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one. Raises BadInput for one made with other settings."""
        if not self.planned.checkpoint.exists():
            return
        saved = files.read_tensors(self.planned.checkpoint, CHECKPOINT)
        with files.reading(self.planned.checkpoint, CHECKPOINT):
            setting = json.loads(saved["setting"])
            curves = {name: curve_from(fields) for name, fields in json.loads(saved["curves"]).items()}
            self.written = dict(json.loads(saved["students"]))
            self.stage1_joined = json.loads(saved.get("stage1_joined", "null"))  # versions before did not measure it
            self.earlier_processes = list(json.loads(saved["processes"]))
        self.setting.require_same(setting, self.planned.checkpoint)
        with files.reading(self.planned.checkpoint, CHECKPOINT):
            for network, state in zip(self.networks, saved["scions"], strict=True):
                network.load_state_dict(state)
            if saved["phase"] not in curves or "optimizer" not in saved or "best" not in saved:
                raise ValueError("its phase, optimiser or best weights are missing")
        self.curves = curves
        self._restored = saved
        for name, curve in curves.items():
            self.after_epoch(name, curve)


def restore_adam(optimizer: torch.optim.Adam, saved: dict[str, Any]) -> None:
    """Load Adam's moments, but not its learning rates. Raises ValueError if they belong to other parameters."""
    state = {"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if set(saved["state"]) != set(range(len(parameters))):
        raise ValueError("its optimiser has other parameters")
    for index, parameter in enumerate(parameters):
        require_same_layout(
            saved["state"][index], {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        )
    optimizer.load_state_dict(state)


def require_same_layout(saved: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ValueError where names or shapes differ."""
    if {name: value.shape for name, value in saved.items()} != {name: v.shape for name, v in expected.items()}:
        raise ValueError("its tensors have other names or shapes than this cell's")


def curve_from(fields: dict[str, Any]) -> Curve:
    """A Curve from JSON, whose keys (the epochs) are strings."""
    accuracies = {int(epoch): value for epoch, value in fields["accuracies"].items()}
    return Curve(fields["losses"], accuracies, fields["seconds"], fields.get("steps", 0))
