"""Logits that are not finite say no class: they are refused wherever an accuracy is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from utils.errors import BadInput


class LogitsNotFinite(Exception):
    """A logit is infinite or not a number, so that it says no class. whose: "teacher" or another network."""

    def __init__(self, whose: str):
        super().__init__(f"the logits of the {whose} are not finite")
        self.whose = whose


def finite(logits: Tensor, whose: str = "network") -> Tensor:
    """The logits (B, classes), before classes are read off them. Raises LogitsNotFinite."""
    if not logits.isfinite().all():
        raise LogitsNotFinite(whose)
    return logits


@contextmanager
def logits_from(file: Path, teacher: Path | None = None) -> Iterator[None]:
    """Turn LogitsNotFinite into BadInput that names the network's file, or the teacher's."""
    try:
        yield
    except LogitsNotFinite as error:
        named = teacher if teacher and error.whose == "teacher" else file
        raise BadInput(
            f"{named}: its logits are not finite, for its activations overflow, so it has no accuracy; train it again"
            " or name another file"
        ) from None
