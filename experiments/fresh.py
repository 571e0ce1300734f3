"""`--fresh`: run every cell again, but only once, however often the command is interrupted and restarted.

Before anything is removed, the sha256 of every existing result and checkpoint is written to a list. Only files with
these hashes are outdated, so a cell that `--fresh` has already run again is not run a third time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils import files

KIND = "the list of files that --fresh replaces; remove it to start again"


class Fresh:
    """One `--fresh` and its continuations.

    cell_files: paths of each cell's result and checkpoint. settings: the cells' settings; with others, `--fresh`
    starts again.
    """

    def __init__(self, output_dir: Path, cell_files: Sequence[Sequence[Path]], settings: list[dict]):
        self.output_dir = output_dir
        self.cell_files = cell_files
        names = sorted(self._name(result) for result, _ in cell_files)
        self.path = output_dir / "results" / f"fresh-{_digest(names)[:8]}.json"  # shards do not share it
        self.settings = _digest(settings)

    def continues(self) -> bool:
        """Whether the same command was interrupted before."""
        return self.path.exists() and files.read_json(self.path, KIND).get("settings") == self.settings

    def begin(self) -> None:
        """Write the list, unless the command continues."""
        if not self.continues():
            existing = [file for pair in self.cell_files for file in pair if file.exists()]
            outdated = {self._name(file): files.sha256_of_file(file) for file in existing}
            files.write_json(self.path, {"settings": self.settings, "outdated": outdated})

    def remove_outdated(self, of_cell: Iterable[Path]) -> None:
        """Remove those files of a cell that are on the list. The cell must be locked."""
        outdated = files.read_json(self.path, KIND)["outdated"]
        for file in of_cell:
            if file.exists() and files.sha256_of_file(file) == outdated.get(self._name(file)):
                file.unlink()

    def end(self) -> None:
        """Remove the list once every cell has a result: the next `--fresh` then runs them all again."""
        if all(result.exists() for result, _ in self.cell_files):
            self.path.unlink(missing_ok=True)

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.output_dir))


def _digest(content: list) -> str:
    return files.sha256(json.dumps(content).encode())
