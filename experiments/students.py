"""The files of a cell's students: their names, and which run they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from experiments.setting import Setting, complete
from grafting.stages import GRAFTING
from models import records
from utils import files
from utils.errors import BadInput


def paths(student_dir: Path, networks: str, method: str, dataset: str, shots: int, trial: int) -> dict[str, Path]:
    """The released names with the trial added, by kind: the scions of "stage 1", the student's "best" and "last".

    networks: name of the teacher. Students of other methods have the method's name in place of "graft".
    """
    of_method = "graft" if method == GRAFTING.name else method
    start, end = f"{networks}-student-{of_method}", f"{dataset}-{shots}perclass-trial{trial}"
    names = {"stage 1": f"{start}-block-{end}", "best": f"{start}-net-{end}", "last": f"{start}-net-{end}-last"}
    return {kind: student_dir / f"{name}.pth" for kind, name in names.items()}


def require_free(student_files: Iterable[Path], setting: Setting, result: str, fresh: bool) -> None:
    """Raise BadInput if one of the files exists and belongs to another run.

    A student's file may be overwritten by the run that wrote it, or if that run left neither result nor checkpoint.

    setting, result: of the cell that will write them, as in their records. fresh: the run that wrote them may have had
    another setting.
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
