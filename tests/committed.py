"""What git tracks of this repository: files that a running benchmark writes are none of the tests' business."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tracked(*patterns: str) -> list[Path]:
    """The tracked files that match; where this is no git checkout, all files that match."""
    if not (ROOT / ".git").exists():
        return sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())
    command = ["git", "ls-files", "-z", *(f":(glob){pattern}" for pattern in patterns)]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(ROOT / name for name in names.split("\0") if name)


def as_committed(folder: Path, target: Path) -> Path:
    """A copy of the folder in `target`, as git has it: without untracked files or changes that are not staged."""
    name = folder.relative_to(ROOT)
    if not (ROOT / ".git").exists():
        return shutil.copytree(folder, target / name)
    names = "\0".join(str(path.relative_to(ROOT)) for path in tracked(f"{name.as_posix()}/**"))
    command = ["git", "checkout-index", "-z", "--stdin", f"--prefix={target}/"]
    subprocess.run(command, cwd=ROOT, input=names, text=True, check=True)
    return target / name
