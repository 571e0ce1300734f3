"""A cell of a plan: its setting, its images, its files, and the locks of the process that runs it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from experiments import results, students
from experiments.setting import Setting
from models import records
from utils import files
from utils.errors import BadInput

CHECKPOINT = "a cell's checkpoint; remove it to start the cell again"


@dataclass(frozen=True, eq=False)
class PlannedCell:
    """One (data set, N, trial), to be run, running or done.

    images: (N * classes, 3, 32, 32) uint8, the few-shot images. result: path of the result file. students: paths of
    the scions after "stage 1", of the student at its "best" and at its "last" epoch. record: what determines their
    predictions besides the weights (models/records.py), and the result that they belong to.
    """

    setting: Setting
    images: np.ndarray
    result: Path
    students: dict[str, Path]
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return results.cell_name(self.setting.shots, self.setting.trial)

    @property
    def checkpoint(self) -> Path:
        return self.result.with_suffix(".checkpoint.pt")

    def is_done(self) -> bool:
        """Whether the cell has a result. Raises BadInput if it was made with other settings."""
        if not self.result.exists():
            return False
        self.setting.require_same(results.read(self.result)["setting"], self.result)
        return True

    def require_own_checkpoint(self) -> None:
        """Raise BadInput for a checkpoint that is damaged or of other settings."""
        try:
            if self.checkpoint.exists():
                self.setting.require_same(_setting_in(self.checkpoint), self.checkpoint)
        except BadInput:
            if self.checkpoint.exists():  # if not, another process has just finished the cell
                raise

    def require_free_students(self, fresh: bool) -> None:
        """Raise BadInput where the cell would overwrite students of another run. fresh: students.require_free."""
        students.require_free(self.students.values(), self.setting.content, self.record["result"], fresh)

    def remove_leftovers(self) -> None:
        """Remove the incomplete files of a killed process. The cell and its students must be locked."""
        student_files = self.students.values()
        for path in (self.result, self.checkpoint, *student_files, *map(records.path_of, student_files)):
            files.remove_leftovers(path)

    def lock(self) -> AbstractContextManager:
        """Hold the cell, so that no other process runs it. Raises filelock.Timeout if one does."""
        path = self.result.with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path).acquire(timeout=0)

    def lock_students(self) -> AbstractContextManager:
        """Hold the cell's students. Raises BadInput if a run with another output directory is writing them."""
        student = self.students["best"]
        try:
            return filelock.FileLock(student.with_name(f".{student.stem}.lock")).acquire(timeout=0)
        except filelock.Timeout:
            raise BadInput(f"{student}: another run is writing it; another --student_dir keeps both") from None


def _setting_in(checkpoint: Path) -> dict[str, Any]:
    """The setting of the cell that made the checkpoint. Raises BadInput for a damaged one."""
    saved = files.read_tensors(checkpoint, CHECKPOINT)
    with files.reading(checkpoint, CHECKPOINT):
        return dict(json.loads(saved["setting"]))
