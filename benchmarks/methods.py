"""Every method on the same teacher and images (docs/comparisons.md): its cells, then their table and figure.

    python -m benchmarks.methods --dataset CIFAR10 --nshot 1 10 --trials 3 --best_of 1 --output_dir runs/methods/CIFAR10
    python -m benchmarks.methods --dataset CIFAR10 --grid kd --output_dir runs/grids/CIFAR10/kd

Takes the flags of train_fskd.py. Each method has an output directory of its own in --output_dir; all share one cache of
teacher features. With --table, methods.md and methods.svg are made again from the result files, and nothing is run.

--grid runs the entries of a method's grid (comparisons/methods.py) at one N, by default 10, and writes grid.md. The one
with the highest last test accuracy of trial 0 on CIFAR10 at N = 10 is that of METHODS.
"""

import argparse
import copy
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparisons.methods import GRID, METHODS, ONE_SHOT
from experiments import results, sweep
from experiments.commands import require_sweep
from experiments.job import Job
from experiments.results import Result
from experiments.setting import require_comparable
from grafting.method import Method
from grafting.recipes import PUBLISHED_SHOTS
from grafting.stages import GRAFTING
from train_fskd import command_line
from utils import files
from utils.errors import BadInput
from utils.text import markdown_table, say

COLUMNS = {  # of the tables: heading, decimals
    "last": ("Test accuracy of the last epoch, %", 2),
    "best": ("Test accuracy of the best epoch, which is chosen on the test set, %", 2),
    "steps": ("Steps of the optimiser in a cell", 0),
    "seconds": ("Seconds of training in a cell, without the cached teacher features and the test accuracies", 1),
}
STAGE1 = "stage1"  # of grafting, its scions joined without stage 2
ROWS = [name for method in METHODS for name in ((method, STAGE1) if method == "grafting" else (method,))]
SHARED = ("dataset", "network", "test_sha256", "teacher_sha256", "_subsets")  # by the jobs of all methods
Cells = dict[str, dict[int, list[dict[str, Any]]]]  # by method and N: each trial's values for COLUMNS, or None


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 a cell failed, 2 bad input."""
    args = arguments(argv)
    try:
        if args.table:
            write_table(Job(args).output_dir)
            return 0
        require_sweep(args)
        base = Job(args)
        grid = {label_of(entry): entry for entry in GRID.get(args.grid, ())}
        methods = grid or {name: METHODS[name] for name in args.methods or METHODS}
        jobs = [job_of(base, folder, method, {} if grid else ONE_SHOT) for folder, method in methods.items()]
        sweep.run(jobs)
        write_grid(base.output_dir, args.grid, args.nshot[0]) if args.grid else write_table(base.output_dir)
        return int(sweep.any_failed(jobs))
    except BadInput as error:
        sys.stderr.write(f"benchmarks.methods: {error}\n")
        return 2


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line. A wrong argument ends the program with one line and exit status 2."""
    parser = command_line("benchmarks.methods", __doc__)
    parser.set_defaults(nshot=None)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="which methods (default: all)")
    parser.add_argument("--grid", choices=GRID, help="run the grid of this method instead (default: off)")
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if given & {"method", "optimize_span"}:
        parser.error("--method and --optimize_span: name methods and joins with --methods or --grid")
    if len(given & {"table", "methods", "grid"}) > 1:
        parser.error("--table, --methods and --grid: only one of them")
    args.nshot = args.nshot or ([10] if args.grid else list(PUBLISHED_SHOTS))
    if args.grid:
        if given & {"trials", "shard", "best_of"} or len(args.nshot) > 1:
            parser.error("--grid: trial 0 of one N with --best_of 1; leave --trials, --shard and --best_of out")
        args.trials, args.best_of, args.method = 1, 1, args.grid
    return args


def job_of(base: Job, folder: str, method: Method, one_shot: Mapping[str, Method]) -> Job:
    """The job for one method, in a folder of its own. Images and teacher are the base's.

    one_shot: methods that have other numbers at N = 1, by name.
    """
    job = copy.copy(base)
    job.method, job.output_dir, job.student_dir = method, base.output_dir / folder, base.student_dir / folder
    job.one_shot_method = one_shot.get(method.name)
    job.is_trained = any(phase.lr_student for phase in method.phases(base.data_recipe))
    vars(job).update({name: getattr(base, name) for name in SHARED})
    return job


def label_of(entry: Method) -> str:
    """The name of the folder of a grid's entry."""
    return "-".join(f"{name}-{value:g}" for name, value in asdict(entry).items())


def write_grid(folder: Path, method: str, shots: int) -> None:
    """Write grid.md, with what is chosen, from the result files in the folder. Some entries may still be running."""
    head, body, done = [*asdict(GRID[method][0]), "last"], [], {}
    for entry in GRID[method]:
        path = results.path_of(folder / label_of(entry), shots, 0)
        result = results.read(path) if path.exists() else {"status": "not finished"}
        if result["status"] == "done":
            done[entry] = result["last"]
        last = f"{done[entry]:.2f}" if entry in done else result["status"]
        body.append([*(f"{value:g}" for value in asdict(entry).values()), last])
    highest = f"Highest last test accuracy at N = {shots}, trial 0: `{max(done, key=done.get, default=None)}`"
    text = f"{markdown_table([head, ['-:'] * len(head), *body])}\n\n{highest}\n"
    files.write_text(folder / "grid.md", text)
    say(text)


def write_table(folder: Path) -> None:
    """Write methods.md and methods.svg from the result files of the methods' output directories in the folder."""
    found = read_methods(folder)
    text = markdown(found)
    files.write_text(folder / "methods.md", text)
    files.write_text(folder / "methods.svg", figure(found))
    say(text)


def read_methods(folder: Path) -> list[Result]:
    """Every result in the output directories in the folder.

    Raises BadInput unless the methods had the same teacher, images, seeds and precision, and each cell is there once.
    """
    found, shared = [], {}
    for directory in sorted(path.parent for path in folder.glob("*/results")):
        there = results.read_all(directory)
        require_comparable({f"{directory}: {results.name_of(result)}": result["setting"] for result in there})
        for result in there:
            if name_of(result) in shared:
                raise BadInput(f"{name_of(result)} is in two output directories")
            if result["setting"]["method"] not in METHODS:
                raise BadInput(f"{name_of(result)}: is of a method that comparisons/methods.py does not have")
            shared[name_of(result)] = {**result["setting"], "method": "any", "schedule": []}
        found += there
    if not found:
        raise BadInput(f"{folder}: holds no output directory with results")
    require_comparable(shared)
    return found


def name_of(result: Result) -> str:
    """The name of its method and its cell."""
    return f"{result['setting']['method']}, {results.name_of(result)}"


def cells_of(found: Sequence[Result]) -> Cells:
    """The finished cells, in the order of ROWS; grafting's also as stage 1, where it was measured joined."""
    cells: Cells = {name: {} for name in ROWS}
    for result in (result for result in found if result["status"] == "done"):
        method, shots, final = (result["setting"][name] for name in ("method", "shots", "schedule"))
        chooses, phases = final[-1].get("selects_among", final[-1]["epochs"]) > 1, result["phases"]
        measured = [(method, result["last"], result["best"] if chooses else None, list(phases.values()))]
        if method == GRAFTING.name and (joined := result.get("stage1_joined")):
            stage1 = [phase for name, phase in phases.items() if name.startswith("B")]
            measured.append((STAGE1, joined["accuracy"], None, stage1))
        for name, last, best, of_it in measured:
            counts, seconds = [phase.get("steps") for phase in of_it], [p["seconds"]["training"] for p in of_it]
            steps = None if None in counts else sum(counts)  # older files do not say
            trial = {"last": last, "best": best, "steps": steps, "seconds": sum(seconds)}
            cells[name].setdefault(shots, []).append(trial)
    return {name: dict(sorted(of_method.items())) for name, of_method in cells.items() if of_method}


def markdown(found: Sequence[Result]) -> str:
    """Last and best test accuracy, steps and seconds, methods over N."""
    cells, dataset, teacher = cells_of(found), found[0]["setting"]["dataset"], found[0]["teacher"]["accuracy"]
    of_cells = [trials for of_method in cells.values() for trials in of_method.values()]
    counts = " or ".join(map(str, sorted(set(map(len, of_cells)))))
    failed = [f"; failed: {name_of(result)}" for result in found if result["status"] != "done"]
    head = (
        f"{dataset}, teacher {teacher:.2f}%; mean ± sample standard deviation of the trials;"
        f" trials in a cell: {counts}{''.join(failed)}"
    )
    tables = [
        f"{heading}:\n\n{table(cells, column, decimals)}"
        for column, (heading, decimals) in COLUMNS.items()
        if any(trial[column] is not None for trials in of_cells for trial in trials)
    ]
    return "\n\n".join([head, *tables]) + "\n"


def table(cells: Cells, column: str, decimals: int) -> str:
    """One column of the trials as Markdown: a row for each method, a column for each N."""
    shots = sorted({n for of_method in cells.values() for n in of_method})
    lines = [["method", *(f"N = {n}" for n in shots)], ["-", *("-:" for _ in shots)]]
    for method, of_method in cells.items():
        values = [[trial[column] for trial in of_method.get(n, [])] for n in shots]
        lines.append([method, *(mean_and_deviation(of_cell, decimals) for of_cell in values)])
    return markdown_table(lines)


def mean_and_deviation(values: Sequence[float | None], decimals: int) -> str:
    if not values or None in values:
        return "-"
    mean = f"{statistics.fmean(values):,.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):,.{decimals}f}"


def figure(found: Sequence[Result]) -> str:
    """Last test accuracy over N as SVG: the methods, and grafting without and with stage 2, a line for each."""
    cells, drawing = cells_of(found), io.StringIO()
    panels = {"Methods": [method for method in cells if method != STAGE1]}
    if STAGE1 in cells:
        panels["Grafting without and with stage 2"] = [STAGE1, GRAFTING.name]
    canvas = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axes, (title, shown) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        draw(axes, cells, shown)
        axes.axhline(found[0]["teacher"]["accuracy"], color="black", linestyle="--", label="teacher")
        axes.set_title(f"{found[0]['setting']['dataset']}: {title}")
        axes.legend(fontsize="small")
    with matplotlib.rc_context({"svg.hashsalt": "methods"}):  # the same results give the same file
        canvas.savefig(drawing, format="svg", metadata={"Date": None})
    return drawing.getvalue()


def draw(axes: Axes, cells: Cells, methods: Sequence[str]) -> None:
    """A line for each method: mean over N, with the standard deviation of its trials."""
    for name in methods:
        trials = [[trial["last"] for trial in trials] for trials in cells[name].values()]
        deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in trials]
        style = {"color": f"C{ROWS.index(name)}", "marker": "o", "markersize": 4, "capsize": 3, "label": name}
        axes.errorbar(list(cells[name]), list(map(statistics.fmean, trials)), deviations, **style)
    shots = sorted({n for of_method in cells.values() for n in of_method})
    axes.set(xscale="log", xlabel="N, images per class", ylabel="test accuracy of the last epoch, %")
    axes.set_xticks(shots, list(map(str, shots)), minor=False)
    axes.minorticks_off()


if __name__ == "__main__":
    sys.exit(main())
