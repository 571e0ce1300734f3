"""The methods side by side (docs/comparisons.md), from result files alone.

    python -m benchmarks.comparison benchmarks/results/methods/CIFAR10

The folder holds an output directory for each method. Writes methods.md and methods.svg into it.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparisons.methods import METHODS
from experiments import results
from experiments.results import Result
from experiments.setting import CELL_FIELDS, SHOTS_FIELDS, complete, require_comparable
from grafting.method import GRAFTING
from utils import files
from utils.errors import BadInput
from utils.text import markdown_table

COLUMNS = {  # of Trial: heading, decimals
    "last": ("Test accuracy of the last epoch, %", 2),
    "best": ("Test accuracy of the best epoch, which is chosen on the test set, %", 2),
    "steps": ("Steps of the optimiser in a cell", 0),
    "seconds": ("Seconds of training in a cell, without the cached teacher features and the test accuracies", 1),
}
STAGE1 = "stage1"  # of grafting, its scions joined without stage 2
OF_METHOD = {*CELL_FIELDS, "method", "schedule"}
ROWS = [name for method in METHODS for name in ((method, STAGE1) if method == "grafting" else (method,))]


@dataclass(frozen=True)
class Trial:
    """One finished cell of a method. Accuracies in percent. steps: of the optimiser. seconds: spent in training.

    best: None where there was one epoch to choose from.
    """

    method: str
    shots: int
    last: float
    best: float | None
    steps: int | None
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.comparison", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="folder with an output directory for each method")
    folder = parser.parse_args(argv).folder
    try:
        found = read_methods(folder)
        text = markdown(found)
        files.write_text(folder / "methods.md", text)
        sys.stdout.write(text)
        files.write_text(folder / "methods.svg", figure(found))
    except BadInput as error:
        sys.stderr.write(f"benchmarks.comparison: {error}\n")
        return 2
    return 0


def read_methods(folder: Path) -> list[Result]:
    """Every result in the output directories in the folder. Raises BadInput where they are not of one experiment."""
    found: list[Result] = []
    for directory in sorted(path for path in folder.glob("*") if (path / "results").is_dir()):
        there = results.read_all(directory)
        require_comparable({f"{directory}: {results.name_of(result)}": result["setting"] for result in there})
        found += there
    if not found:
        raise BadInput(f"{folder}: holds no output directory with results")
    require_one_experiment(found)
    return found


def require_one_experiment(found: Sequence[Result]) -> None:
    """Raise BadInput unless methods are known, had the same teacher, images, seed and precision, and each cell once."""
    first: dict[int | None, tuple[str, Mapping[str, Any]]] = {}
    names = set()
    for result in found:
        setting = complete(result["setting"])
        name = f"{setting['method']}, {results.name_of(result)}"
        if setting["method"] not in METHODS:
            raise BadInput(f"{name}: is of a method that comparisons/methods.py does not have")
        if name in names:
            raise BadInput(f"{name} is in two output directories")
        names.add(name)
        for shots, may_differ in ((None, {*OF_METHOD, *SHOTS_FIELDS}), (setting["shots"], OF_METHOD)):
            other_name, other = first.setdefault(shots, (name, setting))
            if differing := [f for f in sorted(set(setting) - may_differ) if setting[f] != other.get(f)]:
                raise BadInput(f"{name} differs from {other_name} in its {differing[0].replace('_', ' ')}")


def trials_of(found: Sequence[Result]) -> list[Trial]:
    """The finished cells; those of grafting also as stage 1, where it was measured joined."""
    trials = []
    for result in found:
        if result["status"] != "done":
            continue
        method, shots = complete(result["setting"])["method"], result["setting"]["shots"]
        phases, final = result["phases"], result["setting"]["schedule"][-1]
        best = result["best"] if final.get("selects_among", final["epochs"]) > 1 else None
        trials.append(Trial(method, shots, result["last"], best, *spent(phases.values())))
        if method == GRAFTING.name and (joined := result.get("stage1_joined")):
            stage1 = [phases[name] for name in ("B0", "B1", "B2")]
            trials.append(Trial(STAGE1, shots, joined["accuracy"], None, *spent(stage1)))
    return trials


def spent(phases: Iterable[Mapping[str, Any]]) -> tuple[int | None, float]:
    """Steps (None where older files do not say) and seconds of training."""
    steps = [phase.get("steps") for phase in phases]
    return None if None in steps else sum(steps), sum(phase["seconds"]["training"] for phase in phases)


def markdown(found: Sequence[Result]) -> str:
    """Last and best test accuracy, steps and seconds, methods over N."""
    trials = trials_of(found)
    setting, teacher = found[0]["setting"], found[0]["teacher"]["accuracy"]
    counts = sorted({len(group) for group in by_cell(trials).values()})
    failed = [f"{complete(r['setting'])['method']}, {results.name_of(r)}" for r in found if r["status"] != "done"]
    head = (
        f"{setting['dataset']}, teacher {teacher:.2f}%; mean ± sample standard deviation of the trials;"
        f" trials in a cell: {' or '.join(map(str, counts))}" + "".join(f"; failed: {name}" for name in failed)
    )
    tables = [
        f"{heading}:\n\n{table(trials, column, decimals)}"
        for column, (heading, decimals) in COLUMNS.items()
        if any(getattr(trial, column) is not None for trial in trials)
    ]
    return "\n\n".join([head, *tables]) + "\n"


def by_cell(trials: Sequence[Trial]) -> dict[tuple[str, int], list[Trial]]:
    """The trials of each (method, N)."""
    cells: dict[tuple[str, int], list[Trial]] = {}
    for trial in trials:
        cells.setdefault((trial.method, trial.shots), []).append(trial)
    return cells


def table(trials: Sequence[Trial], column: str, decimals: int) -> str:
    """One column of the trials as Markdown: a row for each method, a column for each N."""
    cells, shots = by_cell(trials), sorted({trial.shots for trial in trials})
    lines = [["method", *(f"N = {n}" for n in shots)], ["-", *("-:" for _ in shots)]]
    for method in methods_of(trials):
        values = [[getattr(trial, column) for trial in cells.get((method, n), [])] for n in shots]
        lines.append([method, *(mean_and_spread(of_cell, decimals) for of_cell in values)])
    return markdown_table(lines)


def methods_of(trials: Sequence[Trial]) -> list[str]:
    return sorted({trial.method for trial in trials}, key=ROWS.index)


def mean_and_spread(values: Sequence[float | None], decimals: int) -> str:
    if not values or None in values:
        return "-"
    mean = f"{statistics.fmean(values):,.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):,.{decimals}f}"


def figure(found: Sequence[Result]) -> str:
    """Last test accuracy over N as SVG: the methods, and grafting without and with stage 2, a line for each."""
    trials, drawing = trials_of(found), io.StringIO()
    methods = [method for method in methods_of(trials) if method != STAGE1]
    panels = {"Methods": methods}
    if any(trial.method == STAGE1 for trial in trials):
        panels["Grafting without and with stage 2"] = [STAGE1, GRAFTING.name]
    canvas = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axes, (title, lines) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        draw(axes, trials, lines)
        axes.axhline(found[0]["teacher"]["accuracy"], color="black", linestyle="--", label="teacher")
        axes.set_title(f"{found[0]['setting']['dataset']}: {title}")
        axes.legend(fontsize="small")
    with matplotlib.rc_context({"svg.hashsalt": "methods"}):  # the same results give the same file
        canvas.savefig(drawing, format="svg", metadata={"Date": None})
    return drawing.getvalue()


def draw(axes: Axes, trials: Sequence[Trial], methods: Sequence[str]) -> None:
    """A line for each method: mean over N, with the spread of its trials."""
    cells, shots = by_cell(trials), sorted({trial.shots for trial in trials})
    for method in methods:
        measured = [n for n in shots if (method, n) in cells]
        values = [[trial.last for trial in cells[method, n]] for n in measured]
        means, spreads = map(statistics.fmean, values), [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        color = f"C{ROWS.index(method)}"  # the same in every figure
        axes.errorbar(measured, list(means), spreads, color=color, marker="o", markersize=4, capsize=3, label=method)
    axes.set_xscale("log")
    axes.set_xticks(shots, list(map(str, shots)), minor=False)
    axes.minorticks_off()
    axes.set(xlabel="N, images per class", ylabel="test accuracy of the last epoch, %")


if __name__ == "__main__":
    sys.exit(main())
