"""Result files: one JSON file per cell, from which tables and figures are made."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from experiments.setting import complete
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
        setting["dataset"], setting["schedule"][-1]["epochs"], float(result["teacher"]["accuracy"])
        if result["status"] == "done":
            float(result["best"]), float(result["last"])
        elif result["status"] != "failed":
            raise ValueError(f"status {result['status']!r}")
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
