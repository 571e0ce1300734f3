"""Text for people: tables in Markdown, names in one line."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """The cells of each line: the head, the rule ("-:" where numbers are aligned right), the body."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_one_line(name: object) -> str:
    """A name of a file or class with "?" for control characters, line breaks and bytes that are not valid text."""
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in str(name))
