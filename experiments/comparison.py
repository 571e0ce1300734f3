"""The tables and the figure of several methods on the same teacher and images, made from result files only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparisons.methods import METHODS
from experiments import results
from experiments.drawing import Report, decoration, file_of, plain_matplotlib
from experiments.figure import FORMATS, SETTINGS, label
from experiments.results import Result
from experiments.setting import STUDENT_FIELDS, Setting, require_comparable, student_name
from experiments.tables import DEVIATION, mixed
from grafting.stages import GRAFTING
from utils import files
from utils.errors import BadInput
from utils.text import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = {  # of the tables: heading, decimals
    "last": ("Test accuracy of the last epoch, %", 2),
    "best": ("Test accuracy of the best epoch, which is chosen on the test set, %", 2),
    "steps": ("Steps of the optimiser in a cell", 0),
    "seconds": ("Seconds of training in a cell, without the cached teacher features and the test accuracies", 1),
}
ACCURACIES = ("last", "best")
STAGE1 = "stage1"  # of grafting, its scions joined without stage 2
ADVICE = "leave one of them out"
Cells = dict[str, dict[int, list[dict[str, Any]]]]  # by row and N: each trial's values for COLUMNS, or None


def write(folders: Sequence[Path], target: Path | None, report: Report) -> tuple[list[Result], str]:
    """Write methods.md, methods.png and methods.svg. Returns the results, and the tables with what was written.

    folders: as for `read`. target: where to write; None: in the one folder, or beside the first of several. report:
    called with what cannot be drawn. Raises BadInput.
    """
    found = read(folders)
    target = target or (folders[0] if len(folders) == 1 else folders[0].parent)
    text, names = markdown(found), ["methods.md"]
    files.write_text(target / "methods.md", text)
    with decoration(f"{target}: the figure", report):
        for kind in FORMATS:
            files.write_bytes(target / f"methods.{kind}", figure(found, kind))
            names.append(f"methods.{kind}")
    return found, f"{text}\nwritten in {target}: {', '.join(names)}"


def read(folders: Sequence[Path]) -> list[Result]:
    """Every result in output directories, or in those that a folder holds, by row, N and trial.

    Raises BadInput unless all had the same teacher, images, seed and precision, and each cell is there once.
    """
    found = []
    for folder in folders:
        inside = [path.parent for path in (folder / "results", *sorted(folder.glob("*/results"))) if path.is_dir()]
        there = [(directory, result) for directory in inside for result in results.read_all(directory)]
        if not there:
            raise BadInput(f"{folder}: no results found; name output directories, or a folder that holds some")
        found += there
    _require_comparable(found)
    return sorted((result for _, result in found), key=_place)


def require_no_run(folder: Path) -> None:
    """Raise BadInput, before runs are made inside a folder, if it is a run itself, which would stand beside them."""
    if results.paths(folder):
        raise BadInput(f"{folder}: holds a run of train_fskd.py; name another --output_dir")


def _require_comparable(found: Sequence[tuple[Path, Result]]) -> None:
    """Raise BadInput where results cannot stand in one table. found: each with its output directory."""
    shared, of_row, first = {}, {}, {}
    for directory, result in found:
        setting, row, cell = result["setting"], student_name(result["setting"]), results.name_of(result)
        fields = {field: value for field, value in setting.items() if field not in STUDENT_FIELDS}
        shared[f"{directory}: {cell}"] = {**fields, "schedule": []}
        of_row.setdefault(row, {})[f"{directory}: {cell}"] = setting
    for settings in (shared, *of_row.values()):
        require_comparable(settings, ADVICE)
    for directory, result in found:
        cell = f"{student_name(result['setting'])}, {results.name_of(result)}"
        if other := first.get(cell):
            raise BadInput(f"{directory}: holds {cell}, as {other} does; {ADVICE}")
        first[cell] = directory


def _place(result: Result) -> tuple[int, str, int, int]:
    """Sorts results by method, in the order of METHODS, by row, N and trial."""
    setting, order = result["setting"], list(METHODS)
    method = order.index(setting["method"]) if setting["method"] in order else len(order)
    return method, student_name(setting), setting["shots"], setting["trial"]


def cells_of(found: Sequence[Result]) -> Cells:
    """The finished cells by row; grafting's also as stage 1, where it was measured joined."""
    cells: Cells = {}
    done = [result for result in found if result["status"] == "done"]
    starts: dict[tuple[str, int], float] = {}  # seconds of the start from the teacher, which the trials of a run share
    for result in done:
        of = (student_name(result["setting"]), result["setting"]["shots"])
        starts[of] = max(starts.get(of, 0.0), result.get("seconds", {}).get("start", 0.0))
    for result in done:
        setting, phases = result["setting"], result["phases"]
        row = student_name(setting)
        best = result["best"] if _chosen_among(setting) > 1 else None
        measured = [(row, result["last"], best, list(phases.values()))]
        stage1 = [phase for name, phase in phases.items() if name.startswith("B")]
        joined = result.get("stage1_joined")
        if setting["method"] == GRAFTING.name and joined and len(stage1) < len(phases):
            measured.append((row.replace(GRAFTING.name, STAGE1, 1), joined["accuracy"], None, stage1))
        for name, last, best, of_it in measured:
            counts, seconds = [phase.get("steps") for phase in of_it], [p["seconds"]["training"] for p in of_it]
            seconds.append(starts[row, setting["shots"]])
            steps = None if None in counts else sum(counts)  # older files do not say
            trial = {"last": last, "best": best, "steps": steps, "seconds": sum(seconds)}
            cells.setdefault(name, {}).setdefault(setting["shots"], []).append(trial)
    return cells


def markdown(found: Sequence[Result]) -> str:
    """Last and best test accuracy, steps and seconds, methods over N."""
    cells, dataset, teacher = cells_of(found), found[0]["setting"]["dataset"], found[0]["teacher"]["accuracy"]
    of_cells = [trials for of_row in cells.values() for trials in of_row.values()]
    counts = " or ".join(map(str, sorted(set(map(len, of_cells)))))
    failed = [
        f"; failed: {student_name(result['setting'])}, {results.name_of(result)}"
        for result in found
        if result["status"] != "done"
    ]
    head = (
        f"{dataset}, teacher {teacher:.2f}%; mean ± sample standard deviation of the trials;"
        f" trials in a cell: {counts}{''.join(failed)}"
    )
    tables = [
        f"{heading}:\n\n{table(cells, column, decimals)}"
        for column, (heading, decimals) in COLUMNS.items()
        if any(trial[column] is not None for trials in of_cells for trial in trials)
    ]
    return "\n\n".join([head, *tables, *_remarks(found)]) + "\n"


def _chosen_among(setting: Setting) -> int:
    """The number of last epochs among which a cell's best is chosen."""
    final = setting["schedule"][-1]
    return final.get("selects_among", final["epochs"])


def _remarks(found: Sequence[Result]) -> list[str]:
    """What a reader of the tables should know."""
    among = {student_name(result["setting"]): _chosen_among(result["setting"]) for result in found}
    among = {row: epochs for row, epochs in among.items() if epochs > 1}
    counts = ", ".join(f"{epochs} in {row}" for row, epochs in among.items())
    uneven = f"The best is the highest of a row's last epochs, of which there are more in some rows: {counts}."
    return [*([uneven] if len(set(among.values())) > 1 else []), *mixed(found)]


def table(cells: Cells, column: str, decimals: int) -> str:
    """One column of the trials as Markdown: a row for each method, a column for each N."""
    shots = sorted({n for of_row in cells.values() for n in of_row})
    lines = [["method", *(f"N = {n}" for n in shots)], ["-", *("-:" for _ in shots)]]
    for row, of_row in cells.items():
        values = [[trial[column] for trial in of_row.get(n, [])] for n in shots]
        lines.append([row, *(mean_and_deviation(of_cell, decimals) for of_cell in values)])
    text = markdown_table(lines)
    return f"{text}\n\n{DEVIATION}" if column in ACCURACIES and "±" in text else text


def mean_and_deviation(values: Sequence[float | None], decimals: int) -> str:
    if not values or None in values:
        return "-"
    mean = f"{statistics.fmean(values):,.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):,.{decimals}f}"


@plain_matplotlib(SETTINGS)
def figure(found: Sequence[Result], kind: str) -> bytes:
    """Last test accuracy over N as "png" or "svg": the methods, and grafting without and with stage 2, a line for each.

    The same results give the same bytes with the same version of matplotlib.
    """
    from matplotlib.figure import Figure

    cells, dataset = cells_of(found), found[0]["setting"]["dataset"]
    joined = [row for row in cells if row.startswith(STAGE1)]
    panels = {"methods": [row for row in cells if row not in joined]}
    if joined:
        with_stage2 = [row.replace(STAGE1, GRAFTING.name, 1) for row in joined]
        panels["grafting without and with stage 2"] = [*joined, *with_stage2]
    canvas = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axes, (title, shown) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw(axes, cells, shown)
        axes.axhline(found[0]["teacher"]["accuracy"], color="black", linestyle="--", label="teacher")
        label(axes, sorted({n for of_row in cells.values() for n in of_row}), f"{dataset}: {title}")
        axes.set_ylabel("test accuracy of the last epoch, %")
        axes.legend(fontsize="small")
    return file_of(canvas, kind)


def _draw(axes: Axes, cells: Cells, shown: Sequence[str]) -> None:
    """A line for each row: mean over N, with the standard deviation of its trials."""
    for name in shown:
        place, trials = list(cells).index(name), [[trial["last"] for trial in cell] for cell in cells[name].values()]
        deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in trials]
        style = {"color": f"C{place}", "marker": "os^D"[place // 10 % 4], "markersize": 4, "capsize": 3, "label": name}
        axes.errorbar(list(cells[name]), list(map(statistics.fmean, trials)), deviations, **style)
