"""What is timed: whole cells, the plain procedure, steps; and the report."""

import json
from argparse import Namespace

import pytest
import torch
from committed import ROOT
from small import pictures, small_job

import train_fskd
from benchmarks import plain, speed
from benchmarks.steps import fresh_scion
from utils.errors import BadInput

PARTS = {f"{phase} {what}" for phase in ("B0", "B1", "B2", "L2", "L3") for what in ("training", "test")}


def test_a_little_of_everything(with_teacher, monkeypatch, capsys):
    """With a cell in a process of its own: every part is timed, and the report says what it is."""
    monkeypatch.setattr(plain, "WORKERS", 0)
    monkeypatch.setattr(train_fskd, "__file__", str(ROOT / "tests/driver.py"))
    teacher = ["--teacher", "ckpt/teacher/vgg16-blockwise-folder.pth", "--device", "cpu"]
    few = ["--nshot", "1", "--plain_epochs", "1", "--step_epochs", "1", "--output", "."]
    assert speed.main(["--dataset", "Folder", *teacher, *few]) == 0
    report = json.loads(next(with_teacher.glob("speed-Folder-cpu-*.json")).read_text())
    (cell,) = report["cells"]
    assert cell["shots"] == 1 and set(cell["plain"]) == PARTS
    others = {"test features", "teacher features", "stage 1 joined", "saving", "Python, files, curves"}
    assert set(cell["ours"]) == {*others, *PARTS}
    assert all(seconds >= 0 for seconds in cell["ours"].values()) and cell["peak_memory"] > 10**8
    assert all(seconds > 0 for times in (cell["plain"], *report["steps"].values()) for seconds in times.values())
    assert set(report["steps"]) == {"B0", "B1", "B2", "L2", "L3"}
    assert "plain is extrapolated from a few epochs" in capsys.readouterr().out


def test_the_cells_of_a_data_set_are_train_fskds(tmp_path, monkeypatch):
    """Of a schedule of 3, 2, 2, 2 and 4 epochs; the plain procedure is extrapolated to them."""
    asked = []
    monkeypatch.setattr(speed, "time_cell", lambda *cell: asked.append(cell) or {"ours": {"saving": 1.0}})
    monkeypatch.setattr(plain, "training_epoch", lambda *_: 2.0)
    monkeypatch.setattr(plain, "evaluation", lambda *_: 5.0)
    args = Namespace(nshot=[1, 2], plain_epochs=1, step_epochs=1)
    report = speed.measure(args, ["--dataset", "Folder"], small_job(tmp_path))
    assert asked == [([train_fskd.__file__, "--dataset", "Folder"], shots) for shots in (1, 2)]
    assert report["test_accuracies"] == {"B0": [3, 3], "B1": [2, 2], "B2": [2, 2], "L2": [2, 2], "L3": [4, 4]}
    first, second = (cell["plain"] for cell in report["cells"])
    assert first == second and set(first) == PARTS and (first["B0 training"], first["L3 test"]) == (6.0, 20.0)


def test_ratios_by_hand():
    """100 s of training and 80 of test accuracies as released; with 5 of 20, 20 s."""
    cell = {"shots": 1, "plain": {"B0 training": 100.0, "B0 test": 80.0}, "ours": {"B0 training": 10.0, "saving": 2.0}}
    memory = {"peak_memory": 1.5e9, "peak_gpu_memory": None}
    assert speed.cell_line(cell | memory, {"B0": [5, 20]}) == "1 | 180 | 120 | 12.0 | 15.0 | 10.0 | 1.50"


def test_the_plain_procedure_trains_the_scion_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "WORKERS", 0)
    job = small_job(tmp_path)
    teacher, phase = job.frozen_teacher(), job.recipe.phases[0]
    scion = fresh_scion(teacher, phase)
    before, of_teacher = ([p.clone() for p in network.parameters()] for network in (scion, teacher.blocks))
    training, _ = plain.loaders(job.dataset, pictures(6), 2)
    assert plain.training_epoch(teacher.blocks, scion, phase, 2, training) > 0
    assert all(not torch.equal(a, b) for a, b in zip(scion.parameters(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(teacher.blocks.parameters(), of_teacher, strict=True))


FAULTS = {
    "file/": ["--output", "file/results"],
    "--method and --start: leave": ["--start", "teacher"],
    "runs cells": ["--diagnose"],
}


@pytest.mark.parametrize(("line", "flags"), FAULTS.items())
def test_bad_input_is_found_first(at_home, monkeypatch, capsys, flags, line):
    (at_home / "file").write_text("no folder")
    monkeypatch.setattr(speed, "time_cell", lambda *_: pytest.fail("measured"))
    assert speed.main(["--dataset", "Folder", "--output", "results", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"benchmarks.speed: {line}") and error.count("\n") == 1


def test_a_cell_that_fails_is_bad_input():
    with pytest.raises(BadInput, match="failed"):
        speed.time_cell(["-c", "raise SystemExit(1)"], 1)
