"""--method and --optimize_span from the command line: where the results are, and what they say."""

import json

import pytest
from small import small_teacher

import train_fskd
from experiments import job, results, tables
from grafting import recipes
from grafting.recipes import CIFAR10
from models import checkpoints

CELL = ("--nshot", "1", "--trials", "1")


@pytest.fixture
def at_home(tmp_path, monkeypatch, dataset, recipe):
    """A working directory with a teacher in which --dataset Folder is the small data set with the short recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "dataset_name", lambda name, path: name)
    monkeypatch.setattr(job, "open_dataset", lambda name, path: dataset)
    monkeypatch.setitem(recipes.RECIPES, "Folder", recipe)
    checkpoints.write_teacher(small_teacher(), tmp_path / "ckpt/teacher/vgg16-blockwise-folder.pth")
    return tmp_path


def command(*arguments):
    return train_fskd.main(["--dataset", "Folder", *arguments])


@pytest.mark.parametrize(
    ("flags", "method", "folder"),
    [
        ([], "grafting", "Folder"),
        (["--optimize_span", "back"], "grafting-back", "Folder-grafting-back"),
        (["--method", "whole"], "whole", "Folder-whole"),
        (["--method", "fskd"], "fskd", "Folder-fskd"),
    ],
)
def test_each_method_has_its_own_folder_and_files(at_home, flags, method, folder):
    assert command(*CELL, *flags) == 0
    (result,) = results.read_all(at_home / "runs" / folder)
    assert result["setting"]["method"] == method and (result["stage1_joined"] is None) != method.startswith("grafting")
    last = result["phases"][result["setting"]["schedule"][-1]["phase"]]
    assert last["last"] == result["last"] and len(last["losses"]) > 0 and (last["steps"] == 0) == (method == "fskd")
    name = "graft" if method == "grafting" else method
    student = at_home / f"ckpt/student/vgg-student-{name}-net-Tiny-1perclass-trial0.pth"
    assert json.loads(student.with_suffix(".json").read_text())["setting"]["method"] == method
    assert (at_home / "runs" / folder / "tensorboard").is_dir()


def test_results_of_two_methods_are_not_mixed(at_home, capsys):
    assert command(*CELL) == 0
    assert command(*CELL, "--method", "whole", "--output_dir", "runs/Folder") == 2
    assert "made with another method" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_only_grafting_has_a_span_to_optimize(at_home, capsys):
    assert command(*CELL, "--method", "whole", "--optimize_span", "back") == 2
    assert "--optimize_span back: only with --method grafting" in capsys.readouterr().err


def test_the_papers_column_is_graftings():
    setting = {"dataset": "CIFAR10", "shots": 1, "trial": 0, "schedule": []}
    cell = {"status": "done", "best": 90.0, "last": 89.0, "teacher": {"accuracy": 92.0}}
    for method, paper in (({}, 90.74), ({"method": "grafting"}, 90.74), ({"method": "whole"}, None)):
        (row,) = tables.rows([{**cell, "setting": {**setting, **method}}], CIFAR10)
        assert row.paper == paper
