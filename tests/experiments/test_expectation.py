"""What --diagnose says about the student to expect. The coefficients are tested in tests/benchmarks/test_law.py."""

import math
import shlex
from pathlib import Path

import pytest

import train_fskd
from experiments import expectation
from experiments.expectation import Rule, describe, doubt

INPUTS, FILE = ["--dataset", "Folder", "--data_path", "my pictures"], Path("ckpt/mine.pth")


@pytest.fixture(autouse=True)
def rules(monkeypatch):
    """Coefficients that are easy to reckon with."""
    monkeypatch.setattr(expectation, "RULES", {1: Rule(0.5, 4.0), 10: Rule(0.1, 0.75)})


def described(one_shot, rms, file=FILE):
    return describe(90.0, one_shot, rms, 840, INPUTS, file)


def command_in(lines):
    """The flags of the command in the last line, parsed."""
    python, program, *flags = shlex.split(lines[-1])
    assert (python, program) == ("python", "train_fskd.py")
    return train_fskd.arguments(flags)


def test_the_students_and_the_errors():
    expected, fitted, _, _ = described(70.0, 0.25)
    assert "80.0% at N = 1 and 88.0% at N = 10" in expected and "errors of 4.0 and 0.8 points" in expected
    assert "840 steps" in fitted


def test_a_network_of_other_data_gets_no_forecast():
    (line,) = described(93.1, 2.0)
    assert "was it trained on these data?" in line
    assert len(described(92.9, 2.0)) == 3  # collapsed so far that one image is as good as the teacher


def test_accuracies_near_chance_are_in_doubt():
    assert doubt(27.9, 10) == "; little better than chance (10%): was it trained on these data?"
    assert doubt(28.1, 10) == doubt(60.1, 2) == "" != doubt(59.9, 2)


@pytest.mark.parametrize("rms", [1.0, 8.0, math.inf, 0.0])
def test_a_graftable_teacher_is_left_as_it_is(rms):
    *_, advice = described(88.0, rms)
    assert advice.startswith("That is 1.0 points below") and advice.endswith("can be grafted as it is.")


def test_a_teacher_with_a_small_output_is_only_balanced():
    lines = described(88.0, 0.25)
    args = command_in(lines)
    assert (args.teacher_epochs, args.teacher_from, args.teacher) == (0, FILE, Path("ckpt/mine-balanced.pth"))
    assert "1.0 points below the teacher at N = 1. Block 2's output is small (RMS 0.25)" in lines[-2]


@pytest.mark.parametrize(("one_shot", "name"), [(88.0, "mine-balanced.pth"), (70.0, "mine-graftable.pth")])
def test_the_new_teacher_has_a_name_that_training_takes(one_shot, name):
    """A teacher is read from a file of any name, and written to .pth only."""
    assert command_in(described(one_shot, 0.25, Path("ckpt/mine.pt"))).teacher == Path("ckpt") / name


@pytest.mark.parametrize("rms", [2.0, 2.0**-6])
def test_a_teacher_that_is_not_collapsed_is_trained_further(rms):
    lines = described(70.0, rms)
    args = command_in(lines)
    assert "which is poor" in lines[-2]
    assert (args.teacher_epochs, args.teacher_from, args.teacher) == (None, FILE, Path("ckpt/mine-graftable.pth"))
    assert (args.train_teacher, args.dataset, args.data_path) == (True, "Folder", Path("my pictures"))
