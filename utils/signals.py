"""Ctrl-C and SIGTERM: while modules are loaded they end the process; later they raise exceptions."""

import os
import signal
import sys
from collections.abc import Callable
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
