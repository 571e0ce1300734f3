"""`--fresh`: run every cell again, but only once, however often the command is interrupted and restarted.

Before anything is removed, the sha256 of every existing result and checkpoint is written to a list. Only files with
these hashes are outdated, so a cell that `--fresh` has already run again is not run a third time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from utils import files

KIND = "the list of files that --fresh replaces; remove it to start again"


def remove_outdated(
    output_dir: Path, cell_files: Sequence[Sequence[Path]], lock: Callable[[int], AbstractContextManager]
) -> None:
    """Remove the results and checkpoints from before the first of these `--fresh` commands.

    cell_files: paths of each cell's result and checkpoint. lock: returns the lock of the cell with that index.
    """
    path = _list_of(output_dir, cell_files)
    if not path.exists():
        existing = [file for pair in cell_files for file in pair if file.exists()]
        files.write_json(path, {str(file.relative_to(output_dir)): files.sha256_of_file(file) for file in existing})
    outdated = files.read_json(path, KIND)
    for index, pair in enumerate(cell_files):
        with lock(index):
            for file in pair:
                if file.exists() and files.sha256_of_file(file) == outdated.get(str(file.relative_to(output_dir))):
                    file.unlink()


def end(output_dir: Path, cell_files: Sequence[Sequence[Path]]) -> None:
    """Remove the list once every cell has a result: the next `--fresh` then runs them all again."""
    if all(result.exists() for result, _ in cell_files):
        _list_of(output_dir, cell_files).unlink(missing_ok=True)


def _list_of(output_dir: Path, cell_files: Sequence[Sequence[Path]]) -> Path:
    """The path of the list. Each set of cells has another one, so shards do not share it."""
    names = json.dumps(sorted(str(result.relative_to(output_dir)) for result, _ in cell_files))
    return output_dir / "results" / f"fresh-{files.sha256(names.encode())[:8]}.json"
