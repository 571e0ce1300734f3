"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """The cells of each line: the head, the rule ("-:" where numbers are aligned right), the body."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
