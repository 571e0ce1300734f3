"""The one place where pictures are drawn and guarded: whatever goes wrong there is a line, and costs no result."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from utils.errors import BadInput

Report = Callable[[str], None]


@contextmanager
def decoration(what: str, report: Report) -> Iterator[None]:
    """Report any error inside in one line, and go on. what: what is then missing."""
    try:
        yield
    except BadInput as error:
        report(str(error))
    except Exception as error:  # noqa: BLE001  no list says what drawing and logging libraries may raise
        said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        report(f"{what} cannot be written ({said.splitlines()[0][:200]}); no result depends on it")


@contextmanager
def plain_matplotlib(settings: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Matplotlib with its own defaults and these settings, whatever the user's environment and files say.

    It must not be imported before. Its warnings, of fonts for example, do not reach the user.
    """
    os.environ.update(MPLBACKEND="Agg", MATPLOTLIBRC=os.devnull)  # read when matplotlib is imported
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matplotlib

        defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
        with matplotlib.rc_context({**defaults, **settings}):
            yield
