"""The benchmark for a GPU runs through on a CPU, so that it does not fail on the day that a GPU is at hand."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import gpu

PARTS = (
    "tests, exit status 0",
    "a cell",
    "per view",
    "peak GPU memory",
    "1 process",
    "3 processes",
    "published",
    "quick",
)


def test_every_part_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "START_METHOD", "fork")  # no time for loading torch in each process
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--reduced", "--device", "cpu", "--output", str(tmp_path)])
    gpu.dataset_of(gpu.REDUCED, "Shapes10")  # drawn once, for all processes
    gpu.main()
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    for part in PARTS:
        assert [value >= 0 for what, value, _ in rows if part in what], part
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert last.startswith("| vgg11-small, recipe quick")


@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_random_images_stand_for_a_data_set(name, classes):
    dataset = gpu.dataset_of(gpu.replace(gpu.FULL, train_images=500, test_images=200), name)
    assert dataset.classes == classes == len(dataset.class_names())
    assert dataset.train().images.shape == (500, 3, 32, 32)
    assert sorted(set(dataset.test().labels)) == list(range(classes))
    assert gpu.recipe_of(gpu.FULL, name) is gpu.RECIPES[name]


@pytest.mark.slow
def test_the_command(tmp_path):
    job = [sys.executable, "-m", "benchmarks.gpu", "--reduced", "--device", "cpu", "--output", str(tmp_path)]
    shown = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(part in shown for part in PARTS)
