"""What a process of torchrun takes from its environment. A real torchrun is started in tests/test_endurance.py."""

import pytest

import train_fskd
from utils.torchrun import Process, this_process

SECOND_OF_TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SWEEP = ["--dataset", "Folder", "--nshot", "1", "--trials", "2"]


@pytest.fixture
def under_torchrun(monkeypatch):
    """A function that sets torchrun's variables: those of the second of two processes, and what is changed."""

    def under_torchrun(**changed):
        for name, value in {**SECOND_OF_TWO, **changed}.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return under_torchrun


@pytest.mark.parametrize(
    "changed",
    [
        {"WORLD_SIZE": None, "LOCAL_RANK": None, "LOCAL_WORLD_SIZE": None},
        {"LOCAL_WORLD_SIZE": None},
        {"RANK": "first"},
        {"RANK": ""},
        {"RANK": "-1"},
        {"RANK": "2"},
        {"WORLD_SIZE": "1"},
        {"LOCAL_WORLD_SIZE": "0"},
    ],
)
def test_variables_that_are_left_over_or_senseless_give_a_single_process(under_torchrun, changed):
    under_torchrun()
    assert this_process() == Process(1, 2, 1, 2) and not this_process().is_first
    under_torchrun(**changed)
    assert this_process() == Process(0, 1, 0, 1) and this_process().is_first


def test_only_a_sweep_is_one_of_several(with_teacher, under_torchrun, capsys):
    """The second process runs its cells without the first one, and says only what concerns itself."""
    under_torchrun()
    assert train_fskd.main(SWEEP) == 0
    printed = capsys.readouterr().out
    assert printed.count("|  1 |") == 1 and "\n1-shot trial 1: best" in f"\n{printed.split('1-shot trial 0: best')[0]}"
    assert "test accuracy" not in printed and "reading the images" not in printed
    for command, line in ((["--table"], "|  1 |"), (["--diagnose", "--nshot", "1"], "reading the images")):
        assert train_fskd.main(["--dataset", "Folder", *command]) == 0
        assert line in capsys.readouterr().out, f"{command} is taken for the second process's"
    assert train_fskd.main(["--predict", "none.pth", "none.png"]) == 2
    assert capsys.readouterr().err.startswith("train_fskd.py: none.pth: no such file")


def test_fresh_is_refused(with_teacher, under_torchrun, capsys):
    """One process would remove what another has just written."""
    assert train_fskd.main(SWEEP) == 0
    before = {path: path.read_bytes() for path in with_teacher.rglob("trial-*.json")}
    for index in ("0", "1"):
        under_torchrun(RANK=index)
        assert train_fskd.main([*SWEEP, "--fresh"]) == 2
        error = capsys.readouterr().err
        assert "--fresh: not under torchrun; remove runs/Folder/results and leave --fresh out" in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in with_teacher.rglob("trial-*.json")} == before and len(before) == 2
