"""The files that a cell leaves: its result, from which tables and figures are made, and its students."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from experiments.setting import Setting, complete
from grafting.stages import GRAFTING
from models import records
from utils import files
from utils.errors import BadInput

KIND = "a result file of fskd; remove it to run the cell again"
Result = dict[str, Any]


def path_of(output_dir: Path, shots: int, trial: int) -> Path:
    return output_dir / "results" / f"{shots}-shot" / f"trial-{trial}.json"


def read(path: Path) -> Result:
    """One cell's result. Raises BadInput for a file that is not whole, and for a copy of another cell's result."""
    result = files.read_json(path, KIND)
    with files.reading(path, KIND):
        setting = result["setting"] = complete(result["setting"])
        shots, trial = int(setting["shots"]), int(setting["trial"])
        setting["dataset"], setting["schedule"][-1]["epochs"]
        if result["status"] not in ("done", "failed"):
            raise ValueError(f"status {result['status']!r}")
        figures = (result["best"], result["last"]) if result["status"] == "done" else ()
        if not all(isinstance(figure, int | float) for figure in (result["teacher"]["accuracy"], *figures)):
            raise ValueError("its accuracies are no numbers")
    expected_path = path_of(path.parents[2], shots, trial)
    if path != expected_path:
        original = expected_path.relative_to(path.parents[1])
        raise BadInput(f"{path}: is a copy of {original}, judging by its setting; remove it")
    return result


def paths(output_dir: Path) -> list[Path]:
    """The result files under `output_dir`."""
    found = (output_dir / "results").glob("*-shot/trial-*.json")
    return [p for p in found if p.parent.name.removesuffix("-shot").isdecimal() and p.stem[6:].isdecimal()]


def read_all(output_dir: Path, except_for: Collection[Path] = ()) -> list[Result]:
    """Every result under `output_dir`, by N and trial, except for some files."""
    found = [read(path) for path in paths(output_dir) if path not in except_for]
    return sorted(found, key=lambda result: (result["setting"]["shots"], result["setting"]["trial"]))


def cell_name(shots: int, trial: int) -> str:
    """For messages: "10-shot trial 0"."""
    return f"{shots}-shot trial {trial}"


def name_of(result: Result) -> str:
    """The name of its cell."""
    return cell_name(result["setting"]["shots"], result["setting"]["trial"])


def student_paths(folder: Path, networks: str, method: str, dataset: str, shots: int, trial: int) -> dict[str, Path]:
    """The released names with the trial added, by kind: the scions of "stage 1", the student's "best" and "last".

    Students of other methods have the method's name in place of "graft".
    """
    of_method = "graft" if method == GRAFTING.name else method
    start, end = f"{networks}-student-{of_method}", f"{dataset}-{shots}perclass-trial{trial}"
    names = {"stage 1": f"{start}-block-{end}", "best": f"{start}-net-{end}", "last": f"{start}-net-{end}-last"}
    return {kind: folder / f"{name}.pth" for kind, name in names.items()}


def require_free_students(student_files: Iterable[Path], setting: Setting, result: str, fresh: bool) -> None:
    """Raise BadInput if one of the files exists and belongs to another run.

    A student's file may be overwritten by the run that wrote it, or, with the same setting, if that run left neither
    result nor checkpoint.
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
            fresh_too = "--fresh runs the cell again, " if its_result == result else ""
            raise BadInput(f"{student}: is a student of another run; {fresh_too}another --student_dir keeps both")
