"""What people are shown: lines, progress, tables in Markdown, names in one line."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from threading import Event, Thread
from time import monotonic
from typing import Any, ClassVar

from tqdm import tqdm

LOG_SECONDS = 60.0  # where there is no terminal: so long after the last line, the next one


def say(line: str) -> None:
    """Print a line at once, above any progress bars."""
    Log.said = monotonic()
    tqdm.write(line)
    sys.stdout.flush()


def is_terminal() -> bool:
    """Whether somebody sees bars, which go to stderr."""
    return sys.stderr.isatty()


def bar(iterable: Iterable | None = None, **shown: Any) -> tqdm | Log:
    """A bar with what is counted and the time left; in a job's log, lines that say the same."""
    if is_terminal():
        return tqdm(iterable, leave=False, dynamic_ncols=True, **shown)
    return Log(iterable, **shown)


class Log:
    """In place of a bar where there is no terminal: a line whenever LOG_SECONDS have passed without one.

    It is used as tqdm's bar is, with some of its arguments. Of several, the one that was opened last speaks.
    """

    opened: ClassVar[list[Log]] = []
    said: ClassVar[float] = monotonic()  # when the last line was printed

    def __init__(
        self,
        iterable: Iterable | None = None,
        desc: str = "",
        unit: str = "",
        total: int | None = None,
        initial: int = 0,
        **_of_a_bar: Any,
    ):
        self.iterable, self.desc, self.unit = iterable, desc, unit
        self.total = len(iterable) if total is None else total
        self.n = self.initial = initial
        self.postfix = ""
        self.started = monotonic()
        self._closed = Event()

    def __enter__(self) -> Log:
        self.opened.append(self)
        Thread(target=self._speak, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self.opened.remove(self)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def update(self, n: int = 1) -> None:
        self.n += n

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        """What is said instead of the count."""
        self.postfix = text

    def refresh(self) -> None:
        """Nothing is out of date here."""

    def _speak(self) -> None:
        while not self._closed.wait(min(1.0, LOG_SECONDS)):
            if self.opened[-1:] == [self] and monotonic() - Log.said >= LOG_SECONDS:
                say(self.line())

    def line(self) -> str:
        """ "test features: batch 3 of 20, 2 min left"."""
        if self.postfix:
            return f"{self.desc}: {self.postfix}"
        counted = self.n - self.initial
        left = (monotonic() - self.started) / counted * (self.total - self.n) if counted else None
        return f"{self.desc}: {self.unit} {self.n:,} of {self.total:,}" + time_left(left)


def time_left(seconds: float | None) -> str:
    """ ", 12 min left"; nothing where it is not known, or less than a second."""
    return "" if not seconds or seconds < 1 else f", {brief_time(seconds)} left"


def brief_time(seconds: float) -> str:
    """ "40 s", "12 min", "2.5 h"."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """The cells of each line: the head, the rule ("-:" where numbers are aligned right), the body."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_one_line(name: object) -> str:
    """A name of a file or class with "?" for control characters, line breaks and bytes that are not valid text."""
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in str(name))
