"""Text for people."""

import re
from time import sleep

import pytest

from utils import text
from utils.text import Log, bar, brief_time, in_one_line, markdown_table


def test_a_name_is_one_line_of_valid_text():
    assert in_one_line("a\nb\x1b[0m\udce9\u2028c") == "a?b?[0m??c"
    assert in_one_line("caf\u00e9\u00a0\U0001f469\u200d\U0001f33e") == "caf\u00e9\u00a0\U0001f469\u200d\U0001f33e"


def test_a_table_by_hand():
    assert markdown_table([["N", "best"], ["-:", "-:"], ["1", "91.0"]]) == "| N | best |\n| -: | -: |\n| 1 | 91.0 |"


@pytest.fixture
def printed(monkeypatch, capsys):
    """A function that waits until such a line is printed; lines from before may come first."""
    monkeypatch.setattr(text, "LOG_SECONDS", 0.01)

    def wait(pattern):
        for _ in range(1000):
            if any(re.fullmatch(pattern, line) for line in capsys.readouterr().out.splitlines()):
                return
            sleep(0.01)
        pytest.fail(f"no line like {pattern}")

    return wait


def test_where_there_is_no_terminal_a_line_says_how_far_it_is(printed):
    """Also while nothing happens; of two, the one that was opened last."""
    with bar(desc="cell", unit="epoch", total=1200) as outer:
        outer.set_postfix_str("B0, epoch 2 of 100")
        printed("cell: B0, epoch 2 of 100")
        with bar(desc="features", unit="image", total=1200, initial=5) as inner:
            printed("features: image 5 of 1,200")
            inner.started -= 3600
            inner.update()
            printed(r"features: image 6 of 1,200, 119\d\.\d h left")
        printed("cell: B0, epoch 2 of 100")
    assert list(bar(range(3), desc="batches", unit="batch")) == [0, 1, 2] and not Log.opened


def test_seconds_are_brief():
    assert [brief_time(seconds) for seconds in (3.4, 89, 90, 7199, 9000)] == [
        "3 s",
        "89 s",
        "2 min",
        "120 min",
        "2.5 h",
    ]
