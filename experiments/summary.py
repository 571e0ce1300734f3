"""What is made from all results of a run: the table, the figure, TensorBoard."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import filelock

from experiments import figure, results, tensorboard
from experiments.figure import Panel
from experiments.pictures import decoded
from experiments.results import Result
from experiments.tables import Row, comma_separated, markdown, remarks
from experiments.tensorboard import Report
from utils import files
from utils.errors import BadInput


def write_summary(output_dir: Path, report: Report) -> tuple[list[Row], str]:
    """Write table.md, table.csv, accuracy.png, accuracy.svg and TensorBoard's accuracy over N from the result files.

    The paper's numbers are those of the results' data set. report: called with what TensorBoard cannot write. Returns
    the rows and the table's text. Raises BadInput if there are no results, or if they do not belong in one table.
    """
    if not results.paths(output_dir):
        raise BadInput(f"{output_dir}/results: no results found; give their --dataset or --output_dir")
    with filelock.FileLock(output_dir / ".table.lock"):  # two processes may finish a cell at the same time
        found = results.read_all(output_dir)
        panel = figure.panel(found)
        table = markdown(panel.table)
        drawn = {f"accuracy.{kind}": figure.draw([panel], kind) for kind in figure.FORMATS}
        content = {"table.md": (table + "\n").encode(), "table.csv": comma_separated(panel.table).encode(), **drawn}
        for name, written in content.items():
            files.remove_leftovers(output_dir / name)
            files.write_bytes(output_dir / name, written)
        picture = decoded(drawn["accuracy.png"])
        tensorboard.write_over_shots(output_dir, lines(panel), picture, text(panel, found), report)
    return panel.table, "\n".join([table, *remarks(found)])


def rebuild(output_dir: Path, report: Report) -> tuple[list[Row], str]:
    """`write_summary`, and TensorBoard's run of every cell, from result files. Raises BadInput for a damaged one."""
    written = write_summary(output_dir, report)
    for result in results.read_all(output_dir):
        path = results.path_of(output_dir, result["setting"]["shots"], result["setting"]["trial"])
        with files.reading(path, results.KIND):  # its curves
            tensorboard.rewrite_cell(output_dir, result, report)
    return written


def lines(panel: Panel) -> dict[str, tensorboard.Line]:
    """(N, mean, standard deviation) of what the figure shows, by its name there. A deviation that is not known is 0."""
    measured = [row for row in panel.table if row.best is not None]
    found: dict[str, tensorboard.Line] = {
        "ours, best": [(row.shots, row.best, row.best_spread or 0.0) for row in measured],
        "ours, last": [(row.shots, row.last, row.last_spread or 0.0) for row in measured],
        "our teacher": [(n, panel.table[0].teacher, 0.0) for n in panel.shots],
        "paper, best": [(n, *published) for n, published in panel.published.items()],
    }
    if panel.published_teacher is not None:
        found["paper's teacher"] = [(n, panel.published_teacher, 0.0) for n in panel.published]
    return {name: line for name, line in found.items() if line}


def text(panel: Panel, found: Sequence[Result]) -> str:
    """Table, teacher and commands as Markdown."""
    files_of_teacher = sorted({result["teacher"].get("file", "?") for result in found})
    commands = sorted({shlex.join(["python", *result["command"]]) for result in found if "command" in result})
    return "\n\n".join(
        [
            f"**{panel.title}**",
            markdown(panel.table),
            *remarks(found),
            f"Teacher {', '.join(files_of_teacher)}: test accuracy {panel.table[0].teacher:.2f}%.",
            *(f"`{command}`" for command in commands),
        ]
    )
