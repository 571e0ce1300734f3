"""Ctrl-C and SIGTERM: they end the process while modules are loaded; later they raise, but not within a write."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
Handler = Callable[..., Any]


class Terminated(BaseException):
    """SIGTERM arrived."""


def end_at_once(message: str) -> None:
    """From now on, Ctrl-C and SIGTERM write one line and end the process with status 130 or 143.

    For the time in which modules are loaded: some of them turn an exception that passes through into another one.
    message: the line, with {} for "interrupted" or "terminated".
    """

    def end(number: int, _: object) -> NoReturn:
        sys.stderr.write(message.format(WORDS[number]) + "\n")
        sys.stderr.flush()
        os._exit(128 + number)

    _handle(end, end)


def raise_exceptions() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt and SIGTERM raises Terminated."""
    _handle(signal.default_int_handler, terminate)


def _handle(interrupted: Handler, terminated: Handler) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell has it for a job in the background
        signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, terminated)


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
        for number in arrived:  # also where the block has failed: that error may be caught
            signal.raise_signal(number)
