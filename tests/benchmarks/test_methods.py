"""Every method in one command: who has which cells, what is shared; which learning rates the grids decide for."""

import re

import pytest
from committed import as_committed, tracked
from small import short_recipe

import train_fskd
from acceleration.cached_inputs import FeatureCache
from benchmarks import methods, sizes
from comparisons.methods import GRID, METHODS, Whole
from experiments import results
from experiments.cell import Cell
from grafting.recipes import CURVE_POINTS, RECIPES
from utils import files

COMMAND = ["--dataset", "Folder", "--nshot", "1", "2", "--trials", "2", "--best_of", "1", "--output_dir", "all"]
ONE_CELL = [*COMMAND, "--nshot", "1", "--trials", "1"]
OF_GRID = ["--dataset", "Folder", "--grid", "whole", "--nshot", "2", "--output_dir", "grid"]
ENTRIES = (Whole(1e-4, 1e-3), Whole(2e-3, 2e-3))


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
        if trial == 0 or METHODS[name].trains
    }
    assert len(filled) == 6, "views of an image were computed more than once"
    printed = capsys.readouterr().out
    assert printed.count("teacher ckpt") == 1, "the teacher was prepared for each method"
    assert (folder / "methods.md").read_text() in printed and (folder / "methods.svg").exists()
    assert all(f"| {name} |" in printed for name in METHODS) and "best epoch" not in printed

    monkeypatch.setattr(Cell, "run", lambda *_: pytest.fail("a finished cell was run again"))
    assert methods.main(COMMAND) == 0
    (folder / "methods.md").rename(folder / "before.md")
    assert train_fskd.main(["--compare", "all"]) == 0
    assert (folder / "methods.md").read_text() == (folder / "before.md").read_text()


def test_an_interruption_is_one_line(with_teacher, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Cell, "run", interrupt)
    for program, command in ((methods, ONE_CELL), (sizes, [*ONE_CELL, "--ways", "2"])):
        for fresh in ([], ["--fresh"]):
            assert program.main([*command, *fresh]) == 130
            same = "the same command" + " without --fresh" * len(fresh)
            assert capsys.readouterr().err == f"{program.__name__}: interrupted; {same} goes on where it stopped\n"


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
        (["--methods", "kd", "--grid", "kd"], "--methods and --grid: only one"),
        (["--compare", "all"], "runs cells only"),
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
        setting = {"dataset": "D", "shots": 10, "trial": 0, "schedule": [{"epochs": 1}]}
        result = {"status": status, "last": last, "best": 110 - last, "teacher": {"accuracy": 92.3}, "setting": setting}
        files.write_json(results.path_of(tmp_path / methods.label_of(entry), 10, 0), result)
    methods.write_grid(tmp_path, "whole", 10)
    text = (tmp_path / "grid.md").read_text()
    assert text.endswith(f"`{ENTRIES[1]}`\n") and "| 1 | 1 | failed |" in text


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


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--methods", "kd", "fskd", "--start", "teacher"], "--start teacher: not with --method fskd"),
        (
            ["--methods", "kd", "nearest-class-mean", "--student_width", "0.25"],
            "--student_width: not with --method near",
        ),
    ],
)
def test_a_start_or_width_that_a_method_cannot_have_is_refused_before_any_cell(with_teacher, capsys, flags, line):
    assert methods.main([*ONE_CELL, *flags]) == 2
    assert line in capsys.readouterr().err and not list(with_teacher.rglob("trial-*.json"))


@pytest.mark.parametrize("program", [methods, sizes])
def test_a_folder_that_is_a_run_itself_is_refused_before_anything_is_run(program, at_home, monkeypatch, capsys):
    files.write_json(results.path_of(at_home / "all", 1, 0), {})
    monkeypatch.setattr("experiments.sweep.run", lambda jobs: pytest.fail("cells were run"))
    assert program.main(COMMAND) == 2
    assert "all: holds a run of train_fskd.py; name another --output_dir" in capsys.readouterr().err
