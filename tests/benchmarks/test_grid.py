"""A grid: one cell for each entry, continued where it stopped."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from committed import as_committed, tracked
from small import pictures, small_dataset, small_teacher

import train_fskd
from benchmarks import grid
from comparisons import methods
from comparisons.whole import Whole
from data.datasets import LabelledImages
from experiments import job, results
from experiments.cell_runner import CellRunner
from grafting import recipes
from models import checkpoints

ENTRIES = (Whole(1e-4, 1e-3), Whole(2e-3, 2e-3))


@pytest.fixture
def at_home(tmp_path, monkeypatch, recipe):
    """A working directory with a teacher; ten pictures of each class, a short recipe, two entries."""
    train = LabelledImages(pictures(30, 1), torch.arange(30).numpy() % 3)
    dataset = replace(small_dataset(), train=lambda: train)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "dataset_name", lambda name, path: name)
    monkeypatch.setattr(job, "open_dataset", lambda name, path: dataset)
    monkeypatch.setitem(recipes.RECIPES, "Folder", recipe)
    monkeypatch.setitem(methods.GRID, "whole", ENTRIES)
    checkpoints.write_teacher(small_teacher(), tmp_path / "ckpt/teacher/vgg16-blockwise-folder.pth")
    return tmp_path


COMMAND = ["--dataset", "Folder", "--method", "whole", "--output_dir", "grid"]


def test_a_grid_has_a_row_for_each_entry_and_names_the_best(at_home, capsys, monkeypatch):
    assert grid.main(COMMAND) == 0
    printed = capsys.readouterr().out
    folders = [
        at_home / "grid" / name for name in ("lr_student-0.0001-lr_adapter-0.001", "lr_student-0.002-lr_adapter-0.002")
    ]
    found = [results.read(results.path_of(folder, 10, 0)) for folder in folders]
    assert [result["setting"]["schedule"][0]["lr_adapter"] for result in found] == [1e-3, 2e-3]
    rows = (at_home / "grid/grid.md").read_text().splitlines()
    assert rows[2] == f"| 0.0001 | 0.001 | {found[0]['last']:.2f} |"
    best = max(zip(found, ENTRIES, strict=True), key=lambda pair: pair[0]["last"])[1]
    assert rows[-1].endswith(f"`{best}`") and rows[-1] in printed
    epochs = sum(phase.epochs for phase in recipes.RECIPES["Folder"].phases)
    every = -(-epochs // recipes.CURVE_POINTS)
    assert [int(epoch) for epoch in found[0]["phases"]["whole"]["accuracies"]] == [
        epoch for epoch in range(1, epochs + 1) if epoch % every == 0 or epoch == epochs
    ], "test accuracies that the choice does not need"
    assert printed.count("teacher ckpt") == 1, "the teacher was prepared for each entry"

    monkeypatch.setattr(CellRunner, "run", lambda *_: pytest.fail("a finished cell was run again"))
    assert grid.main(COMMAND) == 0


def test_a_method_without_a_grid_is_one_line(at_home, capsys):
    assert grid.main(["--dataset", "Folder", "--method", "fskd"]) == 2
    assert "--method fskd: has no grid; choose from whole, kd, fitnets" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--nshot", "5", "6"], ["--trials", "2"], ["--best_of", "3"], ["--shard", "1/2"]])
def test_flags_that_a_grid_does_not_take_are_refused(at_home, capsys, flags):
    assert grid.main([*COMMAND, *flags]) == 2
    assert re.match(rf"benchmarks.grid: {flags[0]}: .*a grid is (trial 0|for one N)", capsys.readouterr().err)


def test_a_grid_at_another_n(at_home, capsys):
    assert grid.main([*COMMAND, "--nshot", "2"]) == 0
    assert all(results.path_of(at_home / "grid" / grid.label_of(entry), 2, 0).exists() for entry in ENTRIES)
    assert "Highest last test accuracy at N = 2, trial 0: `Whole" in capsys.readouterr().out


def test_an_entry_that_another_process_is_running(at_home, capsys, monkeypatch):
    assert grid.main(COMMAND) == 0
    results.path_of(at_home / "grid" / grid.label_of(ENTRIES[1]), 10, 0).unlink()
    monkeypatch.setattr(CellRunner, "run", lambda *_: "another process is running it")
    assert grid.main(COMMAND) == 0
    assert "| 0.002 | 0.002 | not finished |" in (at_home / "grid/grid.md").read_text()


def test_the_highest_last_accuracy_is_chosen(at_home, monkeypatch):
    """Not the highest best one, and no failed cell."""
    outcomes = iter(
        [
            {"status": "done", "last": 50.0, "best": 90.0},
            {"status": "done", "last": 60.0, "best": 61.0},
            {"status": "failed"},
        ]
    )
    plan = job.Job(train_fskd.arguments(COMMAND)).plan()
    monkeypatch.setattr(results, "read", lambda path: next(outcomes))
    monkeypatch.setattr(Path, "exists", lambda path: True)
    text = grid.markdown(dict.fromkeys((*ENTRIES, Whole(1.0, 1.0)), plan), 10)
    assert text.endswith(f"`{ENTRIES[1]}`\n") and "| 1 | 1 | failed |" in text


@pytest.mark.parametrize(
    "table", tracked("benchmarks/results/grids/*/*/grid.md"), ids=lambda p: "-".join(p.parts[-3:-1])
)
def test_the_measured_grids_decide(table, tmp_path):
    """A committed table is the one of its files; the entry that it names on CIFAR10 at N = 10 is the one in METHODS."""
    folder = as_committed(table.parent, tmp_path)
    text = (folder / "grid.md").read_text()
    shots = int(re.search(r"at N = (\d+)", text)[1])
    plans = {e: SimpleNamespace(output_dir=folder / grid.label_of(e)) for e in methods.GRID[folder.name]}
    assert text == grid.markdown(plans, shots)
    if folder.parent.name == "CIFAR10":
        assert shots == 10 and text.endswith(f"`{methods.METHODS[folder.name]}`\n")
