"""What is written from all results of a run: the table, the figure, TensorBoard's accuracy over N."""

from __future__ import annotations

from pathlib import Path

import filelock

from experiments import figure, results
from experiments.tables import Row, comma_separated, lines_over_shots, markdown, remarks
from experiments.tensorboard import write_accuracy_over_shots
from utils import files
from utils.errors import BadInput


def write_summary(output_dir: Path) -> tuple[list[Row], str]:
    """Write table.md, table.csv, accuracy.png, accuracy.svg and TensorBoard's accuracy over N from the result files.

    The paper's numbers are those of the results' data set. Returns the rows and the table's text. Raises BadInput if
    there are no results, or if they do not belong in one table.
    """
    if not results.paths(output_dir):
        raise BadInput(f"{output_dir}/results: no results found; give their --dataset or --output_dir")
    with filelock.FileLock(output_dir / ".table.lock"):  # two processes may finish a cell at the same time
        found = results.read_all(output_dir)
        panel = figure.panel(found)
        table = markdown(panel.table)
        content = {"table.md": (table + "\n").encode(), "table.csv": comma_separated(panel.table).encode()}
        content |= {f"accuracy.{kind}": figure.draw([panel], kind) for kind in figure.FORMATS}
        for name, written in content.items():
            files.remove_leftovers(output_dir / name)
            files.write_bytes(output_dir / name, written)
        write_accuracy_over_shots(output_dir, lines_over_shots(panel.table))
    return panel.table, "\n".join([table, *remarks(found)])
