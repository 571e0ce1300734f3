"""Test accuracy over the student's size: several widths and numbers of blocks, by several methods (docs/start.md).

    python -m benchmarks.sizes --dataset CIFAR10 --nshot 1 10 --trials 3 --best_of 1 --output_dir runs/sizes/CIFAR10

Takes the flags of train_fskd.py, for a VGG. Each student and method has an output directory of its own in --output_dir.
At the end it measures the sizes and the speed of each student on this machine and writes sizes.md and sizes.svg; with
--table, these are made again from the files that are there, and nothing is run. An interrupted run goes on.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from deployment.evaluation import Candidate, seconds_in_turn
from deployment.export import OnRawImages
from deployment.folding import fold
from experiments import commands, comparison, sweep
from experiments.arguments import command_line
from experiments.comparison import mean_and_deviation
from experiments.drawing import decoration, file_of, plain_matplotlib
from experiments.figure import SETTINGS
from experiments.job import SHARED, Job
from experiments.results import Result
from experiments.setting import method_name, student_name
from experiments.tables import DEVIATION
from grafting.scions import scions
from utils import files, machine
from utils.argument_types import Blocks
from utils.errors import BadInput
from utils.text import markdown_table, say


class Way(NamedTuple):
    """A way to a student: a method, and how its blocks start."""

    method: str
    start: str


STUDENTS = (  # grafted blocks, and the share of the teacher's channels in them; those of the same blocks stand together
    (Blocks(3, 5), 0.5), (Blocks(3, 5), 0.25), (Blocks(3, 5), 0.125), (Blocks(1, 5), 0.5), (Blocks(1, 5), 0.25),
)  # fmt: skip
WAYS = (Way("grafting", "fresh"), Way("kd", "fresh"), Way("least-squares", "fresh"), Way("grafting", "teacher"))
OWN = ("method", "start", "grafted", "student_width", "student_dir", "optimize_span")  # flags that it sets itself
COLUMNS = {"parameters": "parameters, million", "multiply_adds": "multiply-adds, million", "speed": "images/s, of 256"}
SCALE = {"parameters": 1e6, "multiply_adds": 1e6, "speed": 1.0}
POINTS = (0.5, 0, -0.5, -1, -3, -10, -30)  # on the axis of accuracies
MEASURED = "sizes.json"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, as --help lists it."""
    parser = command_line("benchmarks.sizes", __doc__)
    named = ", ".join(f"{k} {way.method} (start {way.start})" for k, way in enumerate(WAYS))
    parser.add_argument("--ways", type=int, nargs="+", choices=range(len(WAYS)), default=list(range(len(WAYS))),
                        help=f"which of {named} (default: all)")  # fmt: skip
    args = parser.parse_args(argv)
    if given := [name for name in OWN if getattr(args, name) != parser.get_default(name)]:
        parser.error(f"--{given[0]}: the students and ways are this program's own; leave it out")
    return commands.run(args, run, "benchmarks.sizes")


def run(base: Job) -> int:
    """Run all students and ways, and measure them; with --table, only write table and figure."""
    jobs = []
    if not base.args.table:
        commands.require_sweep(base.args)
        comparison.require_no_run(base.output_dir)
        jobs = [job_of(base, *student, WAYS[way]) for student in STUDENTS for way in base.args.ways]
        for _, of_same_blocks in groupby(jobs, key=lambda job: job.pair.grafted):
            sweep.run(list(of_same_blocks))  # with one cache of teacher features
        files.write_json(base.output_dir / MEASURED, measured(jobs))
    write_table(base.output_dir)
    return int(sweep.any_failed(jobs))


def job_of(base: Job, grafted: Blocks, width: float, way: Way) -> Job:
    """The job of one student and one way, in a folder of its own. Images and teacher are the base's."""
    args = argparse.Namespace(**{**vars(base.args), "method": way.method, "start": way.start})
    args.grafted, args.student_width, args.output_dir = grafted, width, None
    if way.method == "least-squares":
        args.best_of = args.eval_every = None  # there are no epochs to measure
    job = Job(args, report=base.report)
    folder = base.output_dir / f"{job.pair.name}-{way.method}"
    job.output_dir, job.student_dir = folder, folder / "student"
    vars(job).update({name: getattr(base, name) for name in SHARED}, _subsets=base._subsets)
    return job


def measured(jobs: Sequence[Job]) -> dict[str, Any]:
    """Sizes and speed of the teacher and of each student, folded, on this machine; random weights do for that."""
    by_name = {size_name(*job.args.grafted, job.args.student_width): job for job in jobs}
    first = next(iter(by_name.values()))
    teacher = OnRawImages(copy.deepcopy(first.network).cpu(), first.dataset.normalization)
    networks: dict[str, nn.Module] = {"teacher": teacher}
    for name, job in by_name.items():
        teacher = job.frozen_teacher()
        networks[name] = fold(teacher, scions(teacher, torch.Generator()))
    candidates = [Candidate(name, network) for name, network in networks.items()]
    seconds = seconds_in_turn(candidates, first.image_size, 256)
    sizes = {}
    for candidate, of_256 in zip(candidates, seconds, strict=True):
        parameters, multiply_adds = candidate.counts(first.image_size)
        sizes[candidate.name] = {"parameters": parameters, "multiply_adds": multiply_adds, "speed": 256 / of_256}
    return {"machine": machine.description(torch.device("cpu")), "threads": torch.get_num_threads(), "sizes": sizes}


def write_table(folder: Path) -> None:
    """Write sizes.md and sizes.svg from what there is in the folder. Raises BadInput."""
    content = files.read_json(folder / MEASURED, "the sizes; run the command without --table")
    found = comparison.read([folder])
    teacher, rows = found[0]["teacher"]["accuracy"], rows_of(found, content["sizes"])
    text, dataset = markdown(rows, teacher, content), found[0]["setting"]["dataset"]
    files.write_text(folder / "sizes.md", text)
    with decoration(f"{folder}: the figure", say):
        files.write_bytes(folder / "sizes.svg", figure(rows, teacher, content["sizes"]["teacher"], dataset))
    say(text)


def rows_of(found: Sequence[Result], sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """What each student is, how it was made, and the last test accuracies of its trials by N; those of a size together.

    sizes: as `measured` names them.
    """
    cells, rows = comparison.cells_of(found), {}
    for setting in (result["setting"] for result in found):
        (start, end), width, name = setting["schedule"][-1]["span"], setting.get("student_width"), student_name(setting)
        size = size_name(start, end - 1, width)
        if size not in sizes:
            raise BadInput(f"{MEASURED}: has no {size}, of the run of {name}; move that run elsewhere")
        accuracies = {n: [trial["last"] for trial in trials] for n, trials in cells.get(name, {}).items()}
        rows[name] = {"blocks": f"{start}-{end - 1}", "width": width, "way": method_name(setting),
                      "accuracies": accuracies, **sizes[size]}  # fmt: skip
    in_order = sorted(rows.values(), key=lambda row: row["way"])
    return sorted(in_order, key=lambda row: (row["blocks"], row["width"]), reverse=True)


def size_name(first: int, last: int, width: float | None) -> str:
    """What a size is called in sizes.json. width: None for a network that is no VGG, of which there is none."""
    return f"blocks {first}-{last}, width {width}"


def markdown(rows: Sequence[dict[str, Any]], teacher: float, content: dict[str, Any]) -> str:
    """A line for each student and way: size, speed, and last test accuracy over N."""
    shots = sorted({n for row in rows for n in row["accuracies"]})
    head = ["blocks", "width", "method", *COLUMNS.values(), *(f"N = {n}" for n in shots)]
    whole = content["sizes"]["teacher"]
    lines = [
        head,
        [":-"] * 3 + ["-:"] * (len(head) - 3),
        ["teacher", "1", "", *sizes_of(whole), *[f"{teacher:.2f}"] * len(shots)],
    ]
    for row in rows:
        accuracies = [mean_and_deviation(row["accuracies"].get(n, []), 2) for n in shots]
        lines.append([row["blocks"], f"{row['width']:g}", row["way"], *sizes_of(row), *accuracies])
    threads = f"{content['threads']} {'thread' if content['threads'] == 1 else 'threads'}"
    return (
        "Test accuracy of the last epoch, %. Students are folded; speed on"
        f" {content['machine']['device']}, {threads}.\n\n{markdown_table(lines)}\n\n{DEVIATION}\n"
    )


def sizes_of(size: dict[str, float]) -> list[str]:
    return [f"{size[column] / SCALE[column]:,.{0 if column == 'speed' else 2}f}" for column in COLUMNS]


@plain_matplotlib(SETTINGS)
def figure(rows: Sequence[dict[str, Any]], teacher: float, whole: dict[str, float], dataset: str) -> bytes:
    """Accuracy minus the teacher's over each size as SVG: a row for each N, a line for each way and grafted blocks."""
    from matplotlib.figure import Figure

    shots = sorted({n for row in rows for n in row["accuracies"]})
    canvas = Figure(figsize=(12, 3.4 * len(shots) + 0.8))
    panels = canvas.subplots(len(shots), len(COLUMNS), squeeze=False, sharex="col", sharey=True)
    ways, blocks = (list(dict.fromkeys(row[what] for row in rows)) for what in ("way", "blocks"))
    for n, of_shots in zip(shots, panels, strict=True):
        for axes, (column, label) in zip(of_shots, COLUMNS.items(), strict=True):
            for way, of_blocks in dict.fromkeys((row["way"], row["blocks"]) for row in rows):
                of_line = [row for row in rows if (row["way"], row["blocks"]) == (way, of_blocks)]
                there = [row for row in of_line if n in row["accuracies"]]
                x = [row[column] / SCALE[column] for row in there]
                y = [statistics.fmean(row["accuracies"][n]) - teacher for row in there]
                dashes = "-" if of_blocks == blocks[0] else "--"
                style = {"color": f"C{ways.index(way)}", "marker": "os^"[blocks.index(of_blocks)], "linestyle": dashes}
                axes.plot(x, y, label=f"{way}, blocks {of_blocks}", **style)
            axes.plot([whole[column] / SCALE[column]], [0], "k*", markersize=10, label="teacher")
            axes.axhline(0, color="black", linestyle=":", linewidth=1)
            axes.set_xlabel(label if n == shots[-1] else "")
        of_shots[0].set_ylabel(f"N = {n}: student - teacher, points")
    panels[0, 0].set_yscale("symlog", linthresh=1)  # of all panels; linear from -1 to 1
    panels[0, 0].set_yticks(POINTS, [f"{points:g}" for points in POINTS])
    margins = [statistics.fmean(last) - teacher for row in rows for last in row["accuracies"].values()]
    panels[0, 0].set_ylim(min(-1, 1.5 * min(margins)), max(0.5, 1.5 * max(margins)))
    canvas.suptitle(f"{dataset}: last test accuracy, teacher {teacher:.2f}%", fontweight="bold")
    canvas.tight_layout(rect=(0, 0.7 / canvas.get_figheight(), 1, 1))
    canvas.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    return file_of(canvas, "svg")


if __name__ == "__main__":
    sys.exit(main())
