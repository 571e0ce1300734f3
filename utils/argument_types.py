"""What argparse makes of a flag's text: numbers in a range, paths, names, and the two spellings of their own."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple


def whole_number(text: str, least: int) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= least:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")


def number(text: str, largest: int, what: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= largest:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not {what} from 0 to {largest}")


positive, from_zero = partial(whole_number, least=1), partial(whole_number, least=0)
gigabytes = partial(number, largest=10**9, what="a number of gigabytes")  # more than any machine has
weight = partial(number, largest=1000, what="a weight")  # of a loss


def path(text: str) -> Path:
    """argparse type: a path in UTF-8, as TensorBoard and JSON need it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8; choose another name") from None
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; give one")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user, or no home
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def share(text: str) -> float:
    """argparse type: above 0 and at most 1."""
    with suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0, up to 1")


class Shard(NamedTuple):
    """The index-th of count shares of the cells, counted from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def shard(text: str) -> Shard:
    """argparse type: I/K."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/K with I from 1 to K")
    return Shard(int(index), int(count))


class Blocks(NamedTuple):
    """The blocks from first to last."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def blocks(text: str) -> Blocks:
    """argparse type: I-J."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I-J with I up to J")
    return Blocks(int(first), int(last))


def networks(text: str, names: Sequence[str]) -> str | Path:
    """argparse type: a name, or the path of a Python file."""
    if text in names:
        return text
    if not text.endswith(".py"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a file *.py nor one of {', '.join(names)}")
    return path(text)


def true_or_false(text: str) -> bool:
    """argparse type: the released spelling `--build_dataset True`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"
