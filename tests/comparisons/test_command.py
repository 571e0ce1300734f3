"""--method and --optimize_span from the command line: where the results are, and what they say."""

import json

import pytest

import train_fskd
from experiments import results, tables
from grafting.recipes import CIFAR10

CELL = ("--nshot", "1", "--trials", "1")


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
def test_each_method_has_its_own_folder_and_files(with_teacher, flags, method, folder):
    assert command(*CELL, *flags) == 0
    (result,) = results.read_all(with_teacher / "runs" / folder)
    assert result["setting"]["method"] == method and (result["stage1_joined"] is None) != method.startswith("grafting")
    last = result["phases"][result["setting"]["schedule"][-1]["phase"]]
    assert last["last"] == result["last"] and len(last["losses"]) > 0 and (last["steps"] == 0) == (method == "fskd")
    name = "graft" if method == "grafting" else method
    student = with_teacher / f"ckpt/student/vgg-student-{name}-net-Tiny-1perclass-trial0.pth"
    assert json.loads(student.with_suffix(".json").read_text())["setting"]["method"] == method
    assert (with_teacher / "runs" / folder / "tensorboard").is_dir()


def test_methods_are_not_mixed(with_teacher, capsys):
    assert command(*CELL) == 0
    assert command(*CELL, "--method", "whole", "--output_dir", "runs/Folder") == 2
    assert "made with another method" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert command(*CELL, "--method", "whole", "--optimize_span", "back") == 2
    assert "--optimize_span back: only with --method grafting" in capsys.readouterr().err


def test_the_papers_column_is_graftings():
    schedule = [{"phase": "last", "span": [3, 6], "lr_student": 1e-4, "lr_adapter": 1e-4}]
    setting = {"dataset": "CIFAR10", "shots": 1, "trial": 0, "schedule": schedule}
    cell = {"status": "done", "best": 90.0, "last": 89.0, "teacher": {"accuracy": 92.0}}
    for method, paper in (("grafting", 90.74), ("whole", None)):
        (row,) = tables.rows([{**cell, "setting": {**setting, "method": method}}], CIFAR10)
        assert row.paper == paper
