"""What is made from all results of a run: the table, the figure, TensorBoard."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import figure, results, tensorboard
from experiments.drawing import Report, decoration
from experiments.figure import Panel
from experiments.pictures import decoded
from experiments.results import Result
from experiments.tables import Row, comma_separated, markdown, remarks
from utils import files, locks
from utils.errors import BadInput


def write_summary(output_dir: Path, report: Report) -> tuple[list[Row], str, list[str]]:
    """Write table.md, table.csv, accuracy.png, accuracy.svg and TensorBoard's accuracy over N from the result files.

    The paper's numbers are for the results' data set. report: called with what cannot be drawn. Returns
    the rows, the table's text, and the names of the tables and figures. Raises BadInput if there are no results, or if
    they do not belong in one table.
    """
    if not results.paths(output_dir):
        raise BadInput(f"{output_dir}/results: no results found; give their --dataset or --output_dir")
    with locks.hold(output_dir / ".table.lock", timeout=-1):  # two processes may finish a cell at the same time
        found = results.read_all(output_dir)
        panel = figure.panel(found)
        table = markdown(panel.table)
        tables = {"table.md": (table + "\n").encode(), "table.csv": comma_separated(panel.table).encode()}
        _write(output_dir, tables)
        names = list(tables)
        with decoration(f"{output_dir}: the figure", report):
            drawn = {f"accuracy.{kind}": figure.draw([panel], kind) for kind in figure.FORMATS}
            _write(output_dir, drawn)
            names += drawn
            picture = decoded(drawn["accuracy.png"])
            dataset, shown = found[0]["setting"]["dataset"], as_text(panel, found)
            tensorboard.write_over_shots(output_dir, dataset, panel.accuracies, picture, shown, report)
            tensorboard.write_trials(output_dir, found, report)
    return panel.table, "\n".join([table, *remarks(found)]), names


def table_text(output_dir: Path) -> str:
    """The table's text alone; nothing is written."""
    found = results.read_all(output_dir)
    return "\n".join([markdown(figure.panel(found).table), *remarks(found)])


def _write(output_dir: Path, content: Mapping[str, bytes]) -> None:
    for name, written in content.items():
        files.remove_leftovers(output_dir / name)
        files.write_bytes(output_dir / name, written)


def rebuild(output_dir: Path, report: Report) -> tuple[list[Row], str]:
    """`write_summary`, and TensorBoard's run of every cell, from result files. The text says what was written.

    Raises BadInput for a damaged result.
    """
    rows, text, names = write_summary(output_dir, report)
    for result in results.read_all(output_dir):
        path = results.path_of(output_dir, result["setting"]["shots"], result["setting"]["trial"])
        with files.reading(path, results.KIND):  # its curves
            tensorboard.rewrite_cell(output_dir, result, report)
    curves = tensorboard.root(output_dir)
    return rows, f"{text}\nwritten in {output_dir}: {', '.join([*names, *[curves.name] * curves.is_dir()])}"


def as_text(panel: Panel, found: Sequence[Result]) -> str:
    """Table, teacher and commands as Markdown."""
    files_of_teacher = sorted({result["teacher"].get("file", "?") for result in found})
    commands = sorted({shlex.join(["python", *result["command"]]) for result in found if "command" in result})
    title, teacher = f"**{panel.title}**", f"{panel.table[0].teacher:.2f}%"
    about = f"Teacher {', '.join(files_of_teacher)}: test accuracy {teacher}."
    return "\n\n".join([title, markdown(panel.table), *remarks(found), about, *(f"`{line}`" for line in commands)])
