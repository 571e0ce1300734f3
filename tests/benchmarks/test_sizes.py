"""Students of several sizes in one command: which cells, one table and one figure, made again from the files."""

import json
import shutil
from pathlib import Path

import pytest
from small import short_recipe

from benchmarks import sizes
from benchmarks.sizes import Way
from experiments.cell import Cell
from grafting.recipes import RECIPES
from utils.argument_types import Blocks

COMMAND = ["--dataset", "Folder", "--nshot", "1", "2", "--trials", "2", "--best_of", "1", "--output_dir", "all"]


def test_every_student_is_made_in_every_way_and_measured(with_teacher, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "Folder", short_recipe((1,), (1,)))
    monkeypatch.setattr(sizes, "STUDENTS", ((Blocks(3, 5), 0.5), (Blocks(3, 5), 0.25), (Blocks(1, 5), 0.5)))
    monkeypatch.setattr(
        sizes, "WAYS", (Way("grafting", "fresh"), Way("least-squares", "fresh"), Way("grafting", "teacher"))
    )
    monkeypatch.setattr("deployment.evaluation.ROUNDS", {1: 1, 256: 1})
    assert sizes.main([*COMMAND, "--ways", "0", "1", "2"]) == 0
    folder = with_teacher / "all"
    names = ("vgg16", "vgg16-width0.25", "vgg16-blocks1-5")
    made = {path.parent.name for path in folder.glob("*/results")}
    assert made == {
        f"{name}{end}" for name in names for end in ("-grafting", "-least-squares", "-from-teacher-grafting")
    }
    assert len(list(folder.rglob("trial-*.json"))) == 3 * (4 + 2 + 4)
    text, drawn = (folder / "sizes.md").read_text(), (folder / "sizes.svg").read_bytes()
    assert text.count("\n|") == 12 and "| 1-5 | 0.5 | grafting, start teacher |" in text
    measured = json.loads((folder / "sizes.json").read_text())["sizes"]
    students = ("teacher", "blocks 3-5, width 0.5", "blocks 3-5, width 0.25", "blocks 1-5, width 0.5")
    assert set(measured) == set(students)
    parameters = [measured[name]["parameters"] for name in students[:3]]
    assert parameters == sorted(parameters, reverse=True)
    monkeypatch.setattr(Cell, "run", lambda *_: 1 / 0)
    assert sizes.main(["--dataset", "Folder", "--table", "--output_dir", "all"]) == 0
    assert (folder / "sizes.md").read_text() == text and (folder / "sizes.svg").read_bytes() == drawn


def test_results_that_do_not_belong_together_and_flags_of_its_own_are_refused(with_teacher, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "Folder", short_recipe((1,), (1,)))
    monkeypatch.setattr(sizes, "STUDENTS", ((Blocks(3, 5), 0.5),))
    monkeypatch.setattr(sizes, "WAYS", (Way("grafting", "fresh"), Way("least-squares", "fresh")))
    monkeypatch.setattr("deployment.evaluation.ROUNDS", {1: 1, 256: 1})
    one = [*COMMAND, "--nshot", "1", "--trials", "1"]
    assert sizes.main([*one, "--ways", "0"]) == 0
    assert sizes.main([*one, "--ways", "1", "--seed", "3"]) == 2
    assert "in its seed; leave one of them out" in capsys.readouterr().err
    assert sizes.main(["--dataset", "Folder", "--table", "--output_dir", "all"]) == 2
    assert "in its seed; leave one of them out" in capsys.readouterr().err
    shutil.rmtree("all/vgg16-least-squares")
    content = json.loads(Path("all/sizes.json").read_text())
    Path("all/sizes.json").write_text(json.dumps({**content, "sizes": {"teacher": content["sizes"]["teacher"]}}))
    assert sizes.main(["--dataset", "Folder", "--table", "--output_dir", "all"]) == 2
    assert "sizes.json: has no blocks 3-5, width 0.5, of the run of grafting; move" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sizes.main([*one, "--method", "kd"])
    assert "--method: the students and ways are this program's own; leave it out" in capsys.readouterr().err
