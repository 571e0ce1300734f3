"""A family of teachers: each trained or rescaled, diagnosed and grafted once."""

import json
from dataclasses import replace

import filelock
import numpy as np
import pytest
from small import TINY, pictures, small_dataset

from benchmarks import law, teachers
from benchmarks.teachers import Member
from data.datasets import LabelledImages
from experiments import job, results
from grafting import recipes
from models.teacher_recipe import TeacherRecipe

FAMILY = (Member("one", TeacherRecipe("one", epochs=1, lr=0.01)), Member("small", source="one", factor=2.0**-4))


@pytest.fixture
def at_home(tmp_path, monkeypatch, recipe):
    """A working directory; ten pictures of each class, a short recipe, two teachers."""
    train = LabelledImages(pictures(30, 1), np.arange(30) % 3)
    dataset = replace(small_dataset(), train=lambda: train)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "open_dataset", lambda name, path: dataset)
    monkeypatch.setitem(recipes.RECIPES, "Shapes10", replace(recipe, teacher_architecture="vgg11-small"))
    monkeypatch.setitem(teachers.ARCHITECTURES, "vgg11-small", TINY)
    monkeypatch.setattr(teachers, "FAMILY", FAMILY)
    monkeypatch.setattr(teachers, "CELLS", ["--nshot", "1", "10", "--trials", "1"])
    return tmp_path


def test_a_family_is_measured_once(at_home, monkeypatch, capsys):
    assert teachers.main([]) == 0
    one, small = (json.loads((at_home / teachers.MEASURED / f"{m.name}.json").read_text()) for m in FAMILY)
    assert small["blocks"][2]["rms"] == pytest.approx(one["blocks"][2]["rms"] / 16)
    assert small["teacher"]["accuracy"] == one["teacher"]["accuracy"]
    assert [(cell["shots"], cell["trial"]) for cell in small["cells"]] == [(1, 0), (10, 0)]
    result = json.loads((at_home / teachers.WORK / "small/results/10-shot/trial-0.json").read_text())
    measured = {"teacher": result["teacher"]["accuracy"], "B0": result["phases"]["B0"]["last"]}
    measured |= {"best": result["best"], "last": result["last"]}
    assert small["cells"][1] == {"shots": 10, "trial": 0, **measured}
    assert {point.name: point.origin for point in law.read(at_home / teachers.MEASURED)} == {
        m.name: "one" for m in FAMILY
    }

    monkeypatch.setattr(teachers, "measure", lambda *_: pytest.fail("a measured teacher was measured again"))
    capsys.readouterr()
    assert teachers.main([]) == 0
    assert f"one: has been measured; remove {teachers.MEASURED}/one.json" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--diagnose"], ["--method", "kd"], ["--optimize_span", "back"], ["--best_of", "1"]])
def test_what_it_would_ignore_is_refused(at_home, monkeypatch, capsys, flags):
    monkeypatch.setattr(teachers, "measure", lambda *_: pytest.fail("measured"))
    assert teachers.main(["--dataset", "Shapes10", *flags]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.teachers: ")


def test_a_teacher_that_is_missing_is_one_line(at_home, capsys):
    assert teachers.main(["--dataset", "Shapes10", "--teacher", "none.pth", "--output_dir", "mine"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.teachers: none.pth: no such teacher")


def test_a_teacher_with_a_cell_that_another_process_is_running_is_not_measured(at_home, capsys):
    """Nothing incomplete is written."""
    path = results.path_of(teachers.WORK / "one", 10, 0)
    path.parent.mkdir(parents=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        assert teachers.main([]) == 2
    assert "one: not measured, since another process is running a cell" in capsys.readouterr().err
    assert not (teachers.MEASURED / "one.json").exists()


def test_too_few_pictures_are_found_before_any_cell(at_home, monkeypatch, capsys, dataset):
    monkeypatch.setattr(teachers, "run", lambda *_: pytest.fail("cells were run"))
    monkeypatch.setattr(job, "open_dataset", lambda name, path: dataset)
    assert teachers.main([]) == 2
    assert "has only 4 training images" in capsys.readouterr().err


def test_what_is_measured_is_not_replaced(at_home, monkeypatch, capsys):
    monkeypatch.setattr(teachers, "measure", lambda *_: pytest.fail("measured"))
    teachers.MEASURED.mkdir(parents=True)
    (teachers.MEASURED / "mine.json").write_text("{}")
    assert teachers.main(["--dataset", "Shapes10", "--output_dir", "runs/mine"]) == 2
    assert "mine.json: exists already; remove it to measure again" in capsys.readouterr().err
