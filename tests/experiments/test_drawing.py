import logging
import os
import subprocess
import sys

import matplotlib
import pytest
from committed import ROOT

from experiments.drawing import decoration, plain_matplotlib
from utils.errors import BadInput

DRAWN = """
from experiments.drawing import plain_matplotlib
with plain_matplotlib({"font.size": 7}):
    import matplotlib
    print(*(matplotlib.rcParams[name] for name in ("backend", "figure.facecolor", "font.size")))
"""


@pytest.mark.parametrize("here", [True, False])
def test_the_environment_decides_nothing(tmp_path, here):
    """A backend that is not there, no folder for its files, and settings here, or unreadable ones elsewhere."""
    (tmp_path / "matplotlibrc").write_bytes(b"figure.facecolor: red\nno.such: 1\nfont.size: x" if here else b"\xff\xfe")
    (work := tmp_path / "work").mkdir()
    environment = os.environ | {
        "MPLBACKEND": "module://absent.backend",
        "MPLCONFIGDIR": "/dev/null/no",
        "MATPLOTLIBRC": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", DRAWN]
    drawn = subprocess.run(
        command, env=environment, cwd=tmp_path if here else work, capture_output=True, text=True, check=True
    )
    assert (drawn.stdout.lower(), drawn.stderr) == ("agg white 7.0\n", "")


def test_settings_of_before_come_back_and_decide_nothing(monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    with plain_matplotlib():
        assert matplotlib.rcParams["axes.facecolor"] == "white"
    assert matplotlib.rcParams["axes.facecolor"] == "red"
    assert not logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "the figure cannot be written (No space left on device); no result"),
        (ValueError("odd\nlines"), "the figure cannot be written (odd); no result"),
        (MemoryError(), "the figure cannot be written (MemoryError); no result"),
        (BadInput("a.png: cannot be written"), "a.png: cannot be written"),
    ],
)
def test_every_error_is_one_line(error, line):
    said = []
    with decoration("the figure", said.append):
        raise error
    assert len(said) == 1 and said[0].startswith(line) and "\n" not in said[0]


def test_an_interruption_is_none():
    with pytest.raises(KeyboardInterrupt), decoration("the figure", pytest.fail):
        raise KeyboardInterrupt
