"""Ctrl-C and SIGTERM as exceptions, delayed while a file is being written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(BaseException):
    """SIGTERM arrived."""


def terminate(*_: object) -> NoReturn:
    """Handler of SIGTERM."""
    raise Terminated


@contextmanager
def held_back() -> Iterator[None]:
    """Let the block finish before SIGINT or SIGTERM takes effect."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield
        return
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda n, _: arrived.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in arrived:
        signal.raise_signal(number)
