import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from small import CLASSES, pictures
from torch import nn

from benchmarks import plain, speed
from benchmarks.plain import PlainProcedure
from grafting import recipes
from grafting.scions import scions
from models import checkpoints
from utils.arguments import DATA_PATH


def test_the_benchmark_from_end_to_end(teacher, dataset, recipe, tmp_path, monkeypatch, capsys):
    """Every part of both sides is timed, and the report says what it is."""
    checkpoints.write_teacher(teacher, tmp_path / "teacher.pth")
    monkeypatch.setattr(plain, "WORKERS", 0)
    monkeypatch.setattr(speed, "TRAIN", ROOT / "tests/driver.py")
    monkeypatch.setattr(speed, "open_dataset", lambda name, path: dataset)
    monkeypatch.setitem(recipes.RECIPES, "Folder", recipe)
    arguments = ["--dataset", "Folder", "--nshot", "2", "--plain_epochs", "1", "--step_epochs", "2"]
    paths = ["--device", "cpu", "--teacher", str(tmp_path / "teacher.pth"), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments, *paths])
    speed.main()
    report = json.loads(next(tmp_path.glob("speed-Folder-cpu-*.json")).read_text())
    parts = {f"{phase} {what}" for phase in ("B0", "B1", "B2", "L2", "L3") for what in ("training", "test")}
    assert [cell["shots"] for cell in report["cells"]] == [2]
    for cell in report["cells"]:
        assert set(cell["plain"]) == parts
        others = {"test features", "teacher features", "stage 1 joined", "saving", "Python, files, curves"}
        assert set(cell["ours"]) == {*others, *parts}
        assert all(seconds >= 0 for seconds in cell["ours"].values()) and cell["peak_memory"] > 10**8
    assert report["test_accuracies"] == {"B0": [3, 3], "B1": [2, 2], "B2": [2, 2], "L2": [2, 2], "L3": [4, 4]}
    assert set(report["steps"]) == {"B0", "B1", "B2", "L2", "L3"}
    assert "plain is extrapolated from a few epochs" in capsys.readouterr().out


def test_ratios_by_hand():
    """100 s of training and 80 of test accuracies as released; with 5 of 20, 20 s."""
    cell = {"shots": 1, "plain": {"B0 training": 100.0, "B0 test": 80.0}, "ours": {"B0 training": 10.0, "saving": 2.0}}
    memory = {"peak_memory": 1.5e9, "peak_gpu_memory": None}
    assert speed.cell_line(cell | memory, {"B0": [5, 20]}) == "1 | 180 | 120 | 12.0 | 15.0 | 10.0 | 1.50"


def test_the_teacher_is_the_one_that_a_run_takes():
    assert speed.default_teacher("Shapes10", DATA_PATH).name == "vgg11-small-blockwise-shapes10.pth"
    assert speed.default_teacher("Folder", Path("birds")).name == "vgg16-blockwise-folder-birds.pth"


def test_operations_by_hand(teacher, dataset, recipe, tmp_path, monkeypatch):
    """The tiny teacher's layers: 3-4, 4-4, 4-8, 8-8-8 and 8-8 channels, 8-8 and 8-3 linear."""
    checkpoints.write_teacher(teacher, tmp_path / "teacher.pth")
    monkeypatch.setattr(speed, "open_dataset", lambda name, path: dataset)
    monkeypatch.setitem(recipes.RECIPES, "Folder", recipe)
    namespace = argparse.Namespace(dataset="Folder", device="cpu", data_path=tmp_path, teacher=tmp_path / "teacher.pth")
    found = speed.Bench(namespace).operations(2)
    asked = 2 * (1024 * 27 * 4 + 256 * 36 * 4 + 64 * 36 * 8 + 16 * 72 * 8 * 2 + 4 * 72 * 8 + 8 * 8 + 8 * 3)
    scion = 2 * (16 * 72 * 4 + 16 * 36 * 4 + 4 * 32 * 2 + 4 * 36 * 4 + 32 * 2 + 4 * 8 + 8 * 3)
    assert found["teacher features"] == 2 * CLASSES * 162 * asked and found["test features"] == 20 * asked
    assert found["L3 test"] == 4 * 20 * scion
    frozen_end = 2 * (8 * 8 + 8 * 3)  # as often for its input's gradient as forward
    b0 = 2 * 16 * 72 * 4 + 3 * (16 * 36 * 4 + 4 * 32)  # and for the weights; but nothing for what comes in
    b1 = 3 * (4 * 36 * 4 + 32)
    b2 = 3 * (4 * 8 + 8 * 3)
    epochs = 3 * (b0 + 2 * 4 * 72 * 8 + frozen_end), 2 * (2 * 4 * 32 + b1 + frozen_end), 2 * (2 * 32 + b2)
    l2, l3 = 2 * (b0 + 3 * 4 * 32 + b1 + frozen_end), 4 * (b0 + 3 * 4 * 32 + b1 + 3 * 32 + b2)
    assert found["training"] == 2 * 2 * CLASSES * (sum(epochs) + l2 + l3)


def test_the_plain_procedure_trains_the_scion(teacher, dataset, recipe, monkeypatch):
    monkeypatch.setattr(plain, "WORKERS", 0)
    scion = nn.Sequential(scions(teacher.architecture, teacher.classes, torch.Generator())[0])
    before = [parameter.clone() for parameter in scion.parameters()]
    procedure = PlainProcedure(teacher, dataset, pictures(6), 2, torch.device("cpu"))
    procedure.training_epoch(recipe.phases[0], scion, procedure.optimizer(recipe.phases[0], scion))
    assert all(not torch.equal(a, b) for a, b in zip(scion.parameters(), before, strict=True))


def test_a_folder_that_cannot_be_written_is_found_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(sys, "argv", ["speed.py", "--output", str(tmp_path / "file/results")])
    monkeypatch.setattr(speed, "measure_ours", lambda *_: pytest.fail("measured"))
    assert speed.main() == 2
    assert capsys.readouterr().err.startswith("benchmarks.speed: ")
