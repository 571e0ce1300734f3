"""What is shown while a program runs: lines, and progress bars on a terminal."""

from __future__ import annotations

import sys
from functools import partial

from tqdm import tqdm

bar = partial(tqdm, disable=None, leave=False, dynamic_ncols=True)  # with what is counted and the time left


def say(line: str) -> None:
    """Print a line at once, above any progress bars."""
    tqdm.write(line)
    sys.stdout.flush()


def brief_time(seconds: float) -> str:
    """ "40 s", "12 min"."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
