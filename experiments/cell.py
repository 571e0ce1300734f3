"""A cell: one (data set, N, trial), both stages, from fresh scions to a student and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

from torch import nn

from grafting.distillation import Curve, Distillation
from grafting.recipes import Phase, Recipe, batch_size
from grafting.scions import scions
from grafting.stage1 import block_grafting
from grafting.stage2 import net_grafting
from grafting.teacher import FrozenTeacher, Views
from models import checkpoints
from models.checkpoints import on_cpu
from utils import files
from utils.errors import BadInput
from utils.seeds import torch_generator

CHECKPOINT_SECONDS = 20.0  # work that a power cut can cost
Watcher = Callable[[str, Curve], None]  # told of a phase's curve after each of its epochs


@dataclass(frozen=True)
class Setting:
    """Everything that decides a cell's numbers. Two results belong together only if these agree.

    The hashes are sha256 of the teacher's file and of the subset's bytes.
    """

    dataset: str
    shots: int
    trial: int
    seed: int
    subset_seed: int
    precision: str
    teacher_sha256: str
    subset_sha256: str
    recipe: Recipe

    @cached_property
    def identity(self) -> dict[str, Any]:
        """As plain values, with the schedule resolved for this N."""
        schedule = [
            {
                "phase": phase.name,
                "span": list(phase.span),
                "epochs": phase.epochs,
                "lr_student": phase.rates(self.shots)[0],
                "lr_adapter": phase.rates(self.shots)[1],
                "batch": batch_size(self.shots),
            }
            for phase in self.recipe.phases
        ]
        plain = {name: value for name, value in self.__dict__.items() if name not in ("recipe", "identity")}
        return {**plain, "schedule": schedule}

    def require_same(self, other: dict[str, Any], path: Path) -> None:
        """Raise BadInput naming what differs between this cell and the one at `path`."""
        for name, value in self.identity.items():
            if other.get(name) != value:
                named, there, here = name.replace("_", " "), _brief(other.get(name)), _brief(value)
                raise BadInput(
                    f"{path}: made with another {named} ({there}, now {here});"
                    " --fresh redoes it, another --output_dir keeps both"
                )


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:17]}..."


class Cell:
    """A cell under way. What must survive a power cut is in `checkpoint()`; `resume()` takes it up again."""

    def __init__(
        self,
        setting: Setting,
        teacher: FrozenTeacher,
        views: Views,
        eval_every: int,
        checkpoint: Path,
        students: dict[str, Path],
        watch: Watcher,
    ):
        self.setting = setting
        self.teacher = teacher
        self.views = views
        self.eval_every = eval_every
        self.path = checkpoint
        self.students = students
        self.watch = watch
        self.purpose = (setting.seed, setting.shots, setting.trial)
        fresh = scions(teacher.network.architecture, teacher.network.classes, torch_generator(*self.purpose, "scions"))
        self.scions = [scion.to(teacher.device) for scion in fresh]
        self.curves: dict[str, Curve] = {}
        self.current: Distillation | None = None
        self._restored: dict[str, Any] | None = None
        self._saved_at = monotonic()
        self.saving_seconds = 0.0

    def run(self) -> None:
        """Both stages, and the students' files (docs/method.md, sections 4 and 5). Raises NotFinite."""
        self.resume()
        recipe = self.setting.recipe
        block_grafting(recipe, self.scions, self.distill)
        if recipe.stage2[0].name not in self.curves:
            checkpoints.write_stage1(self.scions, self.students["stage 1"])
        net_grafting(recipe, self.scions, self.distill)
        checkpoints.write_stage2(self.current.best, self.students["best"])
        checkpoints.write_stage2(on_cpu(self.current.scion), self.students["last"])

    def distill(self, phase: Phase, scion: nn.Sequential) -> None:
        """Distil a scion over the phase's span, unless a checkpoint says that this is behind us."""
        if self._restored and self._restored["phase"] != phase.name:
            return
        self.current = Distillation(phase, scion, self.setting.shots)
        if self._restored:
            self.current.curve = self.curves[phase.name]
            self.current.optimizer.load_state_dict(self._restored["optimizer"])
            self.current.best = self._restored["best"]
            self._restored = None
        self.curves[phase.name] = self.current.curve
        batch = batch_size(self.setting.shots)
        self.current.run(self.teacher, self.views, batch, self.eval_every, self.purpose, self._after_epoch)

    def _after_epoch(self, current: Distillation) -> None:
        self.watch(current.phase.name, current.curve)
        if monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Save position, scions, optimiser, best so far and curves. The draws need no state (utils/seeds.py)."""
        started = monotonic()
        files.write_tensors(
            self.path,
            {
                "setting": json.dumps(self.setting.identity),
                "curves": json.dumps({name: asdict(curve) for name, curve in self.curves.items()}),
                "phase": self.current.phase.name,
                "scions": [on_cpu(scion) for scion in self.scions],
                "optimizer": self.current.optimizer.state_dict(),
                "best": self.current.best,
            },
        )
        self._saved_at = monotonic()
        self.saving_seconds += self._saved_at - started

    def resume(self) -> None:
        """Take up the checkpoint, if there is one. Raises BadInput for one made with other settings."""
        if not self.path.exists():
            return
        kind = "a cell's checkpoint; remove it to begin the cell again"
        saved = files.read_tensors(self.path, kind)
        with files.reading(self.path, kind):
            setting = json.loads(saved["setting"])
            curves = {name: curve_from(fields) for name, fields in json.loads(saved["curves"]).items()}
        self.setting.require_same(setting, self.path)
        with files.reading(self.path, kind):
            for scion, state in zip(self.scions, saved["scions"], strict=True):
                scion.load_state_dict(state)
        self.curves = curves
        self._restored = saved
        for name, curve in curves.items():
            self.watch(name, curve)


def curve_from(fields: dict[str, Any]) -> Curve:
    """A Curve back from JSON, where the epochs had become text."""
    accuracies = {int(epoch): value for epoch, value in fields["accuracies"].items()}
    return Curve(fields["losses"], accuracies, fields["seconds"])
