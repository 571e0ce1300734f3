"""The files of a cell's students: their names, what their records say, and which run they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.datasets import ImageDataset
from experiments.setting import complete
from grafting.method import GRAFTING
from models import records
from models.vgg import Architecture, name_of
from utils import files
from utils.errors import BadInput


def paths(
    student_dir: Path, teacher: Architecture, method: str, dataset: str, shots: int, trial: int
) -> dict[str, Path]:
    """The released names with the trial added, by kind: the scions of "stage 1", the student's "best" and "last".

    Students of other methods have the method's name in place of "graft".
    """
    of_method = "graft" if method == GRAFTING.name else method
    start, end = f"{name_of(teacher)}-student-{of_method}", f"{dataset}-{shots}perclass-trial{trial}"
    names = {"stage 1": f"{start}-block-{end}", "best": f"{start}-net-{end}", "last": f"{start}-net-{end}-last"}
    return {kind: student_dir / f"{name}.pth" for kind, name in names.items()}


def record(dataset: ImageDataset, teacher_sha256: str, result_file: Path, student_dir: Path) -> dict[str, Any]:
    """What determines a student's predictions besides the weights, and the result that it belongs to."""
    return {
        **records.deciding(dataset, teacher_sha256),
        "result": os.path.relpath(result_file, student_dir),
    }


def require_free(student_files: Iterable[Path], setting: Mapping[str, Any], result: str, fresh: bool) -> None:
    """Raise BadInput if one of the files exists and belongs to another run.

    setting, result: of the cell that will write them, as in their records. A student with the same setting is free if
    its result is the same, or if neither that result nor its checkpoint exists. fresh: so are all students of this
    result, whatever their setting.
    """
    for student in student_files:
        path = records.path_of(student)
        if not (path.exists() or student.exists()):
            continue
        there = files.read_json(path, records.KIND) if path.exists() else {}
        same_setting, its_result = complete(there.get("setting")) == setting, str(there.get("result"))
        is_own = its_result == result and (same_setting or fresh)
        place = Path(os.path.normpath(student.parent / its_result))  # as it was made, whatever is a link
        is_left_over = same_setting and not (place.exists() or place.with_suffix(".checkpoint.pt").exists())
        if not (is_own or is_left_over):
            raise BadInput(f"{student}: is a student of another run; another --student_dir keeps both")
