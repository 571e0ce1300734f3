"""What all drawing shares: no settings of the user's, a figure's bytes, and errors that become a line."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from utils.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150  # of PNG files
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


def file_of(figure: Figure, kind: str, **metadata: str) -> bytes:
    """The figure as "png" or "svg", without date and version, so that it changes only with what it shows.

    metadata: more of it, in an SVG file.
    """
    drawing = io.BytesIO()
    about = {"Date": None, "Creator": None, **metadata} if kind == "svg" else {"Software": None}
    figure.savefig(drawing, format=kind, dpi=DPI, metadata=about)
    return drawing.getvalue()
