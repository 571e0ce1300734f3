"""What people are shown: lines, progress bars on a terminal, tables in Markdown, names in one line."""

import sys
import unicodedata
from collections.abc import Iterable, Sequence
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


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """The cells of each line: the head, the rule ("-:" where numbers are aligned right), the body."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_one_line(name: object) -> str:
    """A name of a file or class with "?" for control characters, line breaks and bytes that are not valid text."""
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in str(name))
