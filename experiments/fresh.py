"""`--fresh`: redo every cell once, however often the command is interrupted and started again.

What is to be redone is written down before anything is removed: the sha256 of every result and checkpoint that is
there. Only files with these hashes are outdated, so a cell that has been redone since is not redone again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from utils import files

KIND = "the list of what --fresh redoes; remove it to begin anew"


def remove_outdated(
    output_dir: Path, cell_files: Sequence[Sequence[Path]], lock: Callable[[int], AbstractContextManager]
) -> None:
    """Remove what was there before the first of these `--fresh` commands.

    cell_files: by cell, the paths of its result and its checkpoint. lock: holds the cell of that index.
    """
    path = _list_of(output_dir, cell_files)
    if not path.exists():
        there = [file for both in cell_files for file in both if file.exists()]
        files.write_json(path, {str(file.relative_to(output_dir)): files.sha256_of_file(file) for file in there})
    outdated = files.read_json(path, KIND)
    for index, both in enumerate(cell_files):
        with lock(index):
            for file in both:
                if file.exists() and files.sha256_of_file(file) == outdated.get(str(file.relative_to(output_dir))):
                    file.unlink()


def end(output_dir: Path, cell_files: Sequence[Sequence[Path]]) -> None:
    """Once every cell has a result, the next `--fresh` redoes them all again."""
    if all(result.exists() for result, _ in cell_files):
        _list_of(output_dir, cell_files).unlink(missing_ok=True)


def _list_of(output_dir: Path, cell_files: Sequence[Sequence[Path]]) -> Path:
    """One list for each set of cells, so that shards do not share it."""
    names = json.dumps(sorted(str(result.relative_to(output_dir)) for result, _ in cell_files))
    return output_dir / "results" / f"fresh-{files.sha256(names.encode())[:8]}.json"
