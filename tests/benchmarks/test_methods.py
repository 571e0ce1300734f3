"""Every method in one command: who has which cells, what is shared; tables by hand, and what must not stand in one."""

import re

import pytest
from committed import as_committed, tracked
from small import short_recipe

from acceleration.feature_cache import FeatureCache
from benchmarks import methods
from comparisons.methods import GRID, METHODS, Whole
from experiments import results
from experiments.cell import Cell
from grafting.recipes import CIFAR10, CURVE_POINTS, RECIPES
from utils import files

COMMAND = ["--dataset", "Folder", "--nshot", "1", "2", "--trials", "2", "--best_of", "1", "--output_dir", "all"]
ONE_CELL = [*COMMAND, "--nshot", "1", "--trials", "1"]
OF_GRID = ["--dataset", "Folder", "--grid", "whole", "--nshot", "2", "--output_dir", "grid"]
ENTRIES = (Whole(1e-4, 1e-3), Whole(2e-3, 2e-3))
PHASE = {"seconds": {"training": 2.0, "evaluation": 9.0}, "steps": 100}


def test_all_methods_share_one_cache_and_are_continued(with_teacher, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "Folder", short_recipe((1,), (1,)))
    filled, fill = [], FeatureCache._fill
    monkeypatch.setattr(FeatureCache, "_fill", lambda cache, *image: filled.append(image) or fill(cache, *image))
    assert methods.main(COMMAND) == 0
    folder = with_teacher / "all"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("trial-*.json")} == {
        f"{name}/results/{shots}-shot/trial-{trial}.json"
        for name in METHODS
        for shots in (1, 2)
        for trial in (0, 1)
        if trial == 0 or METHODS[name].phases(CIFAR10)[0].lr_student
    }
    assert len(filled) == 6, "views of an image were computed more than once"
    printed = capsys.readouterr().out
    assert printed.count("teacher ckpt") == 1, "the teacher was prepared for each method"
    assert (folder / "methods.md").read_text() in printed and (folder / "methods.svg").exists()
    assert all(f"| {name} |" in printed for name in METHODS) and "best epoch" not in printed

    monkeypatch.setattr(Cell, "run", lambda *_: pytest.fail("a finished cell was run again"))
    assert methods.main(COMMAND) == 0
    (folder / "methods.md").rename(folder / "before.md")
    assert methods.main(["--table", "--output_dir", "all"]) == 0
    assert (folder / "methods.md").read_text() == (folder / "before.md").read_text()


def test_some_methods(with_teacher, monkeypatch):
    """The image alone needs no cache: computing all its views would take longer than the method."""
    monkeypatch.setattr(FeatureCache, "_fill", lambda *_: pytest.fail("all views were computed"))
    assert methods.main([*COMMAND, "--methods", "least-squares-images"]) == 0
    found = results.read_all(with_teacher / "all/least-squares-images")
    assert [(r["cached_starts"], r["setting"]["method"]) for r in found] == [(None, "least-squares-images")] * 2


def test_a_method_that_cannot_be_run_is_found_before_any_cell(with_teacher, monkeypatch, capsys):
    assert methods.main([*ONE_CELL, "--methods", "fskd", "--seed", "1"]) == 0
    monkeypatch.setattr(Cell, "run", lambda *_: pytest.fail("a cell was run"))
    assert methods.main([*ONE_CELL, "--methods", "grafting", "fskd"]) == 2
    assert "seed" in capsys.readouterr().err


def test_a_failed_cell_is_exit_status_1(with_teacher, monkeypatch, capsys):
    monkeypatch.setattr("grafting.distillation.train", lambda *_: float("nan"))
    assert methods.main([*ONE_CELL, "--methods", "whole", "fskd"]) == 1
    assert "; failed: whole, 1-shot trial 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([*COMMAND, "--teacher", "nowhere.pth"], "nowhere.pth"),
        ([*COMMAND, "--optimize_span", "back"], "--method and --optimize_span: name methods and joins with --methods"),
        (["--dataset", "Folder", "--method", "kd"], "--method and --optimize_span"),
        (["--dataset", "Folder", "--diagnose"], "runs cells only"),
        (["--table", "--grid", "kd"], "--table, --methods and --grid: only one"),
        (["--table", "--output_dir", "empty"], "empty: holds no output directory with results"),
        (["--grid", "fskd"], "argument --grid: invalid choice: 'fskd'"),
        *(
            ([*OF_GRID, *flag], "--grid: trial 0 of one N")
            for flag in (["--nshot", "1", "2"], ["--trials", "2"], ["--best_of", "3"], ["--shard", "1/2"])
        ),
    ],
)
def test_bad_input_is_one_line(at_home, capsys, flags, line):
    try:
        status = methods.main(flags)
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2 and error.startswith(f"benchmarks.methods: {line}") and error.count("\n") == 1


def test_a_grid_has_a_row_for_each_entry_and_names_the_best(with_teacher, capsys, monkeypatch):
    monkeypatch.setitem(GRID, "whole", ENTRIES)
    assert methods.main(OF_GRID) == 0
    names = ("lr_student-0.0001-lr_adapter-0.001", "lr_student-0.002-lr_adapter-0.002")
    paths = [results.path_of(with_teacher / "grid" / name, 2, 0) for name in names]
    found = [results.read(path) for path in paths]
    assert [result["setting"]["schedule"][0]["lr_adapter"] for result in found] == [1e-3, 2e-3]
    rows = (with_teacher / "grid/grid.md").read_text().splitlines()
    assert rows[2] == f"| 0.0001 | 0.001 | {found[0]['last']:.2f} |"
    assert rows[-1].startswith("Highest last test accuracy at N = 2, trial 0: `Whole")
    assert len(found[0]["phases"]["whole"]["accuracies"]) <= CURVE_POINTS, "more than the choice needs"

    paths[1].unlink()
    monkeypatch.setattr(Cell, "run", lambda *_: "another process is running it")
    assert methods.main(OF_GRID) == 0
    assert "| 0.002 | 0.002 | not finished |" in (with_teacher / "grid/grid.md").read_text()


def test_the_highest_last_accuracy_is_chosen(tmp_path, monkeypatch):
    """Not the highest best one, and no failed cell."""
    monkeypatch.setitem(GRID, "whole", (*ENTRIES, Whole(1.0, 1.0)))
    for entry, last, status in zip(GRID["whole"], (50.0, 60.0, 70.0), ("done", "done", "failed"), strict=True):
        result = {**cell("whole", 10, 0, last), "status": status, "best": 110 - last}
        files.write_json(results.path_of(tmp_path / methods.label_of(entry), 10, 0), result)
    methods.write_grid(tmp_path, "whole", 10)
    text = (tmp_path / "grid.md").read_text()
    assert text.endswith(f"`{ENTRIES[1]}`\n") and "| 1 | 1 | failed |" in text


def cell(method, shots, trial, last, **setting):
    grafting = method == "grafting"
    phases = dict.fromkeys(("B0", "B1", "B2", "L3") if grafting else (method,), PHASE)
    fields = {"dataset": "D", "teacher_sha256": "t", "subset_sha256": f"of {shots}", "method": method}
    fields["schedule"] = [{"phase": "last", "span": [3, 6], "epochs": 100, "lr_student": 1e-4, "lr_adapter": 1e-4}]
    return {
        "status": "done", "best": last + 1, "last": last, "phases": phases, "teacher": {"accuracy": 92.3},
        "stage1_joined": {"accuracy": 30.0, "seconds": 1.0} if grafting else None,
        "setting": {**fields, "shots": shots, "trial": trial, **setting},
    }  # fmt: skip


KD = cell("kd", 1, 0, 70.0)
CELLS = [KD, *(cell("grafting", *of_it) for of_it in ((1, 0, 80.0), (1, 1, 82.0), (10, 0, 90.0)))]


@pytest.fixture
def table(tmp_path, capsys):
    """A function that makes the tables of results in a folder for each method, and of `others` in one more."""

    def make(cells, others=()):
        placed = [(result["setting"].get("method", "old"), result) for result in cells]
        for folder, result in (*placed, *(("others", result) for result in others)):
            setting = result["setting"]
            files.write_json(results.path_of(tmp_path / folder, setting["shots"], setting["trial"]), result)
        status, written = methods.main(["--table", "--output_dir", str(tmp_path)]), tmp_path / "methods.md"
        return status, written.read_text() if written.exists() else capsys.readouterr().err

    return make


def test_the_tables_by_hand(table):
    status, text = table(CELLS)
    head, _, last, _, best, _, steps, _, seconds = text.strip().split("\n\n")
    assert status == 0 and head.startswith("D, teacher 92.30%;") and head.endswith("trials in a cell: 1 or 2")
    top = ["| method | N = 1 | N = 10 |", "| - | -: | -: |"]
    rows = ["| grafting | {} |", "| stage1 | {} |", "| kd | {} | - |"]
    for found, values in (
        (last, ("81.00 ± 1.41 | 90.00", "30.00 ± 0.00 | 30.00", "70.00")),
        (best, ("82.00 ± 1.41 | 91.00", "- | -", "71.00")),
        (steps, ("400 ± 0 | 400", "300 ± 0 | 300", "100")),
        (seconds, ("8.0 ± 0.0 | 8.0", "6.0 ± 0.0 | 6.0", "2.0")),
    ):
        body = [row.format(value) for row, value in zip(rows, values, strict=True)]
        assert found.splitlines() == top + body


def test_what_was_not_looked_for_is_not_in_the_tables(table):
    """A best epoch; in results from before there were other methods, steps and stage 1 joined."""
    one_epoch = [phase | {"selects_among": 1} for phase in KD["setting"]["schedule"]]
    old = cell("grafting", 1, 0, 80.0, schedule=one_epoch)
    del old["setting"]["method"], old["stage1_joined"]
    old["phases"] = {"B0": {"seconds": PHASE["seconds"]}}
    _, text = table([cell("kd", 1, 0, 70.0, schedule=one_epoch), old])
    assert "last epoch, %:" in text and "best epoch" not in text and "71.00" not in text and "stage1" not in text
    assert "| grafting | 80.00 |" in text and "| grafting | - |\n| kd | 100 |" in text


def test_the_figure_has_a_line_for_each_method_and_is_always_the_same():
    drawing = methods.figure(CELLS)
    assert drawing == methods.figure(CELLS) and drawing.startswith("<?xml")
    assert all(f"<!-- {name} -->" in drawing for name in ("grafting", "stage1", "kd", "teacher"))
    assert "<!-- whole -->" not in drawing


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (cell("kd", 1, 0, 70.0, teacher_sha256="u"), "in its teacher sha256"),
        (cell("kd", 10, 0, 70.0, subset_sha256="other"), "in its subset sha256"),
        (cell("kd", 2, 0, 70.0, dataset="E"), "in its dataset"),
        (cell("grafting", 1, 0, 80.0), "grafting, 1-shot trial 0 is in two output directories"),
        (cell("later", 1, 0, 70.0), "later, 1-shot trial 0: is of a method that"),
    ],
)
def test_other_experiments_are_refused_in_one_line(table, other, line):
    status, error = table(CELLS[1:], [other])
    assert status == 2 and line in error and error.count("\n") == 1


@pytest.mark.parametrize("file", tracked("benchmarks/results/methods/*/methods.md"), ids=lambda file: file.parent.name)
def test_committed_tables_are_made_from_the_files_beside_them(file, tmp_path):
    folder = as_committed(file.parent, tmp_path)
    assert (folder / file.name).read_text() == methods.markdown(methods.read_methods(folder))


@pytest.mark.parametrize(
    "file", tracked("benchmarks/results/grids/*/*/grid.md"), ids=lambda file: "-".join(file.parts[-3:-1])
)
def test_the_measured_grids_decide(file, tmp_path):
    """A committed table is the one of its files; the entry that it names on CIFAR10 at N = 10 is the one in METHODS."""
    folder = as_committed(file.parent, tmp_path)
    text = (folder / "grid.md").read_text()
    shots = int(re.search(r"at N = (\d+)", text)[1])
    methods.write_grid(folder, folder.name, shots)
    assert text == (folder / "grid.md").read_text()
    if folder.parent.name == "CIFAR10":
        assert shots == 10 and text.endswith(f"`{METHODS[folder.name]}`\n")
        assert methods.arguments(["--grid", folder.name]).nshot == [10]
