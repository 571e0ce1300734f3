"""`--fresh`: run every cell again, but only once, however often the command is interrupted and restarted.

Before anything is removed, the sha256 of every existing result and checkpoint is written to a list. Only files with
these hashes are outdated, so a cell that `--fresh` has already run again is not run a third time.

One lock at a time is held: those of many cells would be more files than a process may have open. A cell that another
process starts meanwhile is refused; the same command then continues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import filelock

from experiments.planned_cell import PlannedCell
from utils import files
from utils.errors import BadInput

KIND = "the list of files that --fresh replaces; remove it to start again"


class Fresh:
    """One `--fresh` and its continuations. With other settings of the cells, `--fresh` starts again."""

    def __init__(self, output_dir: Path, cells: Sequence[PlannedCell]):
        self.output_dir = output_dir
        self.cells = sorted(cells, key=lambda cell: (cell.setting.shots, cell.setting.trial))
        names = sorted(self._name(cell.result) for cell in cells)
        self.path = output_dir / "results" / f"fresh-{_digest(names)[:8]}.json"  # shards do not share it
        self.settings = _digest([cell.setting.content for cell in self.cells])

    def continues(self) -> bool:
        """Whether the same command was interrupted before."""
        return self.path.exists() and files.read_json(self.path, KIND).get("settings") == self.settings

    def require_none_running(self) -> None:
        """Raise BadInput if another process is running one of the cells."""
        for cell in self.cells:
            with _locked(cell):
                pass

    def remove_outdated(self) -> None:
        """Remove the results and checkpoints that are replaced. Raises BadInput as require_none_running."""
        self._write_list()
        outdated = files.read_json(self.path, KIND)["outdated"]
        for cell in self.cells:
            with _locked(cell):
                for name, _ in self._sha256(cell).items() & outdated.items():
                    (self.output_dir / name).unlink()

    def _write_list(self) -> None:
        """Write the list, unless the command continues."""
        if not self.continues():
            outdated = {name: sha256 for cell in self.cells for name, sha256 in self._sha256(cell).items()}
            files.write_json(self.path, {"settings": self.settings, "outdated": outdated})

    def _sha256(self, cell: PlannedCell) -> dict[str, str]:
        """Of the cell's result and checkpoint, by name, of those that exist."""
        existing = [file for file in (cell.result, cell.checkpoint) if file.exists()]
        return {self._name(file): files.sha256_of_file(file) for file in existing}

    def end(self) -> None:
        """Remove the list once every cell has a result: the next `--fresh` then runs them all again."""
        if all(cell.result.exists() for cell in self.cells):
            self.path.unlink(missing_ok=True)

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.output_dir))


def _locked(cell: PlannedCell) -> AbstractContextManager:
    try:
        return cell.lock()
    except filelock.Timeout:
        message = f"--fresh: another process is running the cell of {cell.result}; stop that process first"
        raise BadInput(message) from None


def _digest(content: list) -> str:
    return files.sha256(json.dumps(content).encode())
