"""The benchmark for a GPU runs through on a CPU, so that it does not fail where there is a GPU."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from small import TINY, pixel, pixels

from benchmarks import gpu
from experiments import figure, pictures
from models.vgg import ARCHITECTURES

PARTS = (
    gpu.TESTS_STATUS,
    "tests: ",
    "network channels last",
    "a cell",
    "per view",
    "peak GPU memory",
    "1 process",
    "3 processes",
    "published",
    "quick",
)


def test_every_part_is_measured(tmp_path, monkeypatch, capsys):
    """Except the tests that are a part of it."""
    if not torch.cuda.is_available():  # a forked process cannot use CUDA, not even to ask what Adam asks of it
        monkeypatch.setattr(gpu, "START_METHOD", "fork")  # no time for loading torch in each process
    monkeypatch.setitem(ARCHITECTURES, gpu.REDUCED.architecture, TINY)
    monkeypatch.setattr(figure, "draw", pixel)
    monkeypatch.setattr(pictures, "confusion_picture", pixels)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--reduced", "--device", "cpu", "--output", str(tmp_path)])
    passed = subprocess.CompletedProcess([], 0, "1 passed in 1.00s\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: passed)
    assert gpu.main() == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert all(any(part in what for what, _, _ in report["rows"]) for part in PARTS)
    assert all(value > 0 for _, value, unit in report["rows"] if unit in ("s", "ms", "µs"))
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert last.startswith("| vgg11-small, recipe quick")


def test_failed_tests_are_said_and_end_with_status_1(tmp_path, monkeypatch, capsys):
    for part in ("cells", "processes", "teachers"):
        monkeypatch.setattr(gpu, part, lambda *_: [])
    done = subprocess.CompletedProcess([], 1, "", "a warning\npython: No module named pytest\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--reduced", "--output", str(tmp_path)])
    assert gpu.main() == 1
    assert "tests: python: No module named pytest" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_random_images_stand_for_a_data_set(name, classes):
    dataset = gpu.dataset_of(gpu.replace(gpu.FULL, train_images=500, test_images=200), name)
    assert dataset.classes == classes == len(dataset.class_names())
    assert dataset.train().images.shape == (500, 3, 32, 32)
    assert sorted(set(dataset.test().labels)) == list(range(classes))
    assert gpu.recipe_of(gpu.FULL, name) is gpu.RECIPES[name]


def test_the_tests_that_it_runs_are_there():
    assert all((ROOT / "tests" / name).exists() for size in (gpu.FULL, gpu.REDUCED) for name in size.tests)


@pytest.mark.slow
def test_the_command(tmp_path):
    job = [sys.executable, "-m", "benchmarks.gpu", "--reduced", "--device", "cpu", "--output", str(tmp_path)]
    shown = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(part in shown for part in PARTS)


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "meta", "--output", str(tmp_path)])
    assert gpu.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks.gpu: --device meta: ") and error.count("\n") == 1
