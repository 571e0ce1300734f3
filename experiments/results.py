"""Result files: one JSON file per cell, from which tables and figures are made."""

from __future__ import annotations

import math
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
    """One cell's result. Raises BadInput for a damaged or edited file, and for a copy of another cell's result."""
    result = files.read_json(path, KIND)
    with files.reading(path, KIND):
        if result["status"] not in ("done", "failed"):
            raise ValueError(f"status {result['status']!r}")
        setting = result["setting"]
        _require(isinstance(setting["dataset"], str), "dataset")
        _require(isinstance(complete(setting)["method"], str), "method")
        for name in ("shots", "trial"):
            _require(type(setting[name]) is int and 0 <= setting[name] < 10**6, name)
        for step in setting["schedule"]:
            step["phase"], step["span"], step["epochs"]
            for rate in ("lr_student", "lr_adapter"):
                _require(_is_finite(step[rate]), rate)
        _require_percent(result["teacher"]["accuracy"], "teacher's accuracy")
        _require(isinstance(result["teacher"].get("file", ""), str), "teacher's file")
        command = result.get("command", [])
        _require(isinstance(command, list) and all(isinstance(word, str) for word in command), "command")
        for process in (result, *result.get("earlier_processes", [])):
            _require(isinstance(process.get("machine", {}), dict), "machine")
        if result["status"] == "done":
            _require_percent(result["best"], "best")
            _require_percent(result["last"], "last")
            _require(result["best"] >= result["last"], "best")
            epochs, among = (setting["schedule"][-1].get(name) for name in ("epochs", "selects_among"))
            _require(not among or epochs - among < result["best_epoch"] <= epochs, "best epoch")
    expected_path = path_of(path.parents[2], setting["shots"], setting["trial"])
    if path != expected_path:
        original = expected_path.relative_to(path.parents[1])
        raise BadInput(f"{path}: is a copy of {original}, judging by its setting; remove it")
    return result


def _require(valid: bool, name: str) -> None:
    if not valid:
        raise ValueError(f"its {name} is not what fskd writes")


def _require_percent(value: Any, name: str) -> None:
    _require(_is_finite(value) and 0 <= value <= 100, name)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


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
