"""Every method's cells in one command: who has which cells, what is shared, what is continued."""

import pytest

from acceleration.feature_cache import FeatureCache
from benchmarks import methods
from comparisons.methods import METHODS
from experiments import results
from experiments.cell_runner import CellRunner
from grafting.method import GRAFTING

COMMAND = ["--dataset", "Folder", "--nshot", "1", "2", "--trials", "2", "--best_of", "1", "--output_dir", "all"]


def cells(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("trial-*.json")}


def test_all_methods_share_one_cache_and_are_continued(with_teacher, monkeypatch, capsys):
    filled, fill = [], FeatureCache._fill
    monkeypatch.setattr(FeatureCache, "_fill", lambda cache, *image: filled.append(image) or fill(cache, *image))
    assert methods.main(COMMAND) == 0
    folder = with_teacher / "all"
    assert cells(folder) == {
        f"{name}/results/{shots}-shot/trial-{trial}.json"
        for name in METHODS
        for shots in (1, 2)
        for trial in (0, 1)
        if METHODS[name].draws or trial == 0
    }
    assert len(filled) == 6, "views of an image were computed more than once"
    printed = capsys.readouterr().out
    assert (folder / "methods.md").read_text() in printed and (folder / "methods.svg").exists()
    assert all(f"| {name} |" in printed for name in METHODS) and "best epoch" not in printed

    monkeypatch.setattr(CellRunner, "run", lambda *_: pytest.fail("a finished cell was run again"))
    assert methods.main(COMMAND) == 0


def test_the_image_alone_needs_no_cache(with_teacher, monkeypatch):
    """Computing all 162 views of each would take longer than the method."""
    monkeypatch.setattr(FeatureCache, "_fill", lambda *_: pytest.fail("all views were computed"))
    assert methods.main([*COMMAND, "--methods", "fskd-images"]) == 0
    found = results.read_all(with_teacher / "all/fskd-images")
    assert [result["cached_starts"] for result in found] == [None, None]


def test_some_methods(with_teacher):
    assert methods.main([*COMMAND, "--nshot", "1", "--trials", "1", "--methods", "grafting", "fskd"]) == 0
    folder = with_teacher / "all"
    assert cells(folder) == {"grafting/results/1-shot/trial-0.json", "fskd/results/1-shot/trial-0.json"}
    assert results.read_all(folder / "grafting")[0]["setting"]["method"] == GRAFTING.name


def test_an_interrupted_fresh_runs_no_method_twice(with_teacher, monkeypatch):
    command = [*COMMAND, "--nshot", "1", "--trials", "1", "--methods", "grafting", "fskd"]
    assert methods.main(command) == 0
    run_cell, run = CellRunner.run, []

    def cut_in_the_second(runner, cell):
        run.append(runner.plan.method.name)
        if run == ["grafting", "fskd"]:
            raise KeyboardInterrupt
        return run_cell(runner, cell)

    monkeypatch.setattr(CellRunner, "run", cut_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        methods.main([*command, "--fresh"])
    assert methods.main([*command, "--fresh"]) == 0
    assert run == ["grafting", "fskd", "fskd"]
    assert methods.main([*command, "--fresh"]) == 0
    assert run[3:] == ["grafting", "fskd"]


def test_a_method_that_cannot_be_run_is_found_before_any_cell(with_teacher, monkeypatch, capsys):
    command = [*COMMAND, "--nshot", "1", "--trials", "1"]
    assert methods.main([*command, "--methods", "fskd", "--seed", "1"]) == 0
    monkeypatch.setattr(CellRunner, "run", lambda *_: pytest.fail("a cell was run"))
    capsys.readouterr()
    assert methods.main([*command, "--methods", "grafting", "fskd"]) == 2
    assert "seed" in capsys.readouterr().err


def test_a_failed_cell_is_exit_status_1(with_teacher, monkeypatch):
    monkeypatch.setattr("grafting.distillation.train", lambda *_: float("nan"))
    assert methods.main([*COMMAND, "--nshot", "1", "--trials", "1", "--methods", "whole", "fskd"]) == 1


def test_bad_input_is_one_line(with_teacher, capsys):
    assert methods.main([*COMMAND, "--teacher", "nowhere.pth"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks.methods: nowhere.pth") and error.count("\n") == 1
    for flag in ("--optimize_span", "back"), ("--method", "kd"):
        assert methods.main([*COMMAND, *flag]) == 2
        assert "with --methods" in capsys.readouterr().err
    assert methods.main(["--dataset", "Folder", "--table"]) == 2
    assert "benchmarks.methods: runs cells only" in capsys.readouterr().err


def test_help_lists_the_methods(capsys):
    with pytest.raises(SystemExit):
        methods.main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: benchmarks.methods ") and "--methods {grafting,grafting-straight," in shown
