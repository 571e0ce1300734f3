import json
import sys

import torch
from small import pictures
from torch import nn

from benchmarks import plain, speed
from benchmarks.plain import PlainProcedure
from grafting import recipes
from grafting.scions import scions
from models import released


def test_the_benchmark_from_end_to_end(teacher, dataset, recipe, tmp_path, monkeypatch, capsys):
    """Every part of both sides is timed, and the report says what it is."""
    released.write_teacher(teacher, tmp_path / "teacher.pth")
    monkeypatch.setattr(plain, "WORKERS", 0)
    monkeypatch.setattr(speed, "open_dataset", lambda name, path: dataset)
    monkeypatch.setitem(recipes.RECIPES, "Folder", recipe)
    arguments = ["--dataset", "Folder", "--nshot", "2", "--plain_epochs", "1", "--device", "cpu"]
    places = ["--teacher", str(tmp_path / "teacher.pth"), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments, *places])
    speed.main()
    report = json.loads(next(tmp_path.glob("speed-Folder-2shot-cpu-*.json")).read_text())
    parts = {f"{phase} {what}" for phase in ("B0", "B1", "B2", "L2", "L3") for what in ("training", "test")}
    assert set(report["plain"]) == {"loading", *parts}
    assert set(report["ours"]) == {"loading", "test features", "store", "checkpoints", *parts}
    assert report["ratio"] == sum(report["plain"].values()) / sum(report["ours"].values())
    assert "plain is extrapolated from a few epochs" in capsys.readouterr().out


def test_the_plain_procedure_trains_the_scion(teacher, dataset, recipe, monkeypatch):
    monkeypatch.setattr(plain, "WORKERS", 0)
    row = nn.Sequential(scions(teacher.architecture, teacher.classes, torch.Generator())[0])
    before = [parameter.clone() for parameter in row.parameters()]
    procedure = PlainProcedure(teacher, dataset, pictures(6), 2, torch.device("cpu"))
    procedure.training_epoch(recipe.phases[0], row, procedure.optimizer(recipe.phases[0], row))
    assert all(not torch.equal(a, b) for a, b in zip(row.parameters(), before, strict=True))
