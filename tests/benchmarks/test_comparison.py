"""The table of methods from result files: rows by hand, and what must not stand in one table."""

import pytest
from committed import as_committed, tracked

from benchmarks import comparison
from experiments import results
from utils import files

PHASE = {"seconds": {"training": 2.0, "evaluation": 9.0}, "steps": 100}
TABLES = tracked("benchmarks/results/methods/*/methods.md")


def cell(method, shots, trial, last, **setting):
    grafting = method == "grafting"
    phases = dict.fromkeys(("B0", "B1", "B2", "L3") if grafting else (method,), PHASE)
    fields = {"dataset": "D", "teacher_sha256": "t", "subset_sha256": f"of {shots}", "method": method}
    fields["schedule"] = [{"phase": "last", "span": [3, 6], "epochs": 100, "lr_student": 1e-4, "lr_adapter": 1e-4}]
    return {
        "status": "done", "best": last + 1, "best_epoch": 100, "last": last, "phases": phases,
        "teacher": {"accuracy": 92.3},
        "stage1_joined": {"accuracy": 30.0, "seconds": 1.0} if grafting else None,
        "setting": {**fields, "shots": shots, "trial": trial, **setting},
    }  # fmt: skip


CELLS = [
    cell("kd", 1, 0, 70.0),
    cell("grafting", 1, 0, 80.0),
    cell("grafting", 1, 1, 82.0),
    cell("grafting", 10, 0, 90),
]


@pytest.fixture
def write(tmp_path):
    """A function that writes results into an output directory for each method, or into the one that is named."""

    def write(cells, directory=None):
        for result in cells:
            setting = result["setting"]
            output_dir = tmp_path / (directory or setting.get("method", "old"))
            files.write_json(results.path_of(output_dir, setting["shots"], setting["trial"]), result)
        return tmp_path

    return write


def test_the_tables_by_hand(write, capsys):
    folder = write(CELLS)
    assert comparison.main([str(folder)]) == 0
    text = (folder / "methods.md").read_text()
    assert capsys.readouterr().out.startswith(text)
    head, _, last, _, best, _, steps, _, seconds = text.strip().split("\n\n")
    assert head.startswith("D, teacher 92.30%;") and head.endswith("trials in a cell: 1 or 2")
    assert last.splitlines() == [
        "| method | N = 1 | N = 10 |",
        "| - | -: | -: |",
        "| grafting | 81.00 ± 1.41 | 90.00 |",
        "| stage1 | 30.00 ± 0.00 | 30.00 |",
        "| kd | 70.00 | - |",
    ]
    assert best.splitlines()[2:] == [
        "| grafting | 82.00 ± 1.41 | 91.00 |", "| stage1 | - | - |", "| kd | 71.00 | - |"
    ]  # fmt: skip
    assert steps.splitlines()[2:] == [
        "| grafting | 400 ± 0 | 400 |", "| stage1 | 300 ± 0 | 300 |", "| kd | 100 | - |"
    ]  # fmt: skip
    assert seconds.splitlines()[2:] == [
        "| grafting | 8.0 ± 0.0 | 8.0 |", "| stage1 | 6.0 ± 0.0 | 6.0 |", "| kd | 2.0 | - |"
    ]  # fmt: skip


def test_a_method_of_another_version_is_one_line(write, capsys):
    assert comparison.main([str(write([*CELLS, cell("later", 1, 0, 70.0)]))]) == 2
    assert "later, 1-shot trial 0: is of a method that" in capsys.readouterr().err


def test_what_was_not_looked_for_has_no_table(write, capsys):
    (phase,) = cell("kd", 1, 0, 70.0)["setting"]["schedule"]
    one_epoch = [phase | {"selects_among": 1}]
    assert comparison.main([str(write([cell("kd", 1, 0, 70.0, schedule=one_epoch)]))]) == 0
    text = capsys.readouterr().out
    assert "last epoch, %:" in text and "best epoch" not in text and "71.00" not in text


def test_the_figure_has_a_line_for_each_method_and_is_always_the_same():
    drawing = comparison.figure(CELLS)
    assert drawing == comparison.figure(CELLS) and drawing.startswith("<?xml")
    for name in ("grafting", "stage1", "kd", "teacher"):
        assert f"<!-- {name} -->" in drawing


def test_results_from_before_there_were_other_methods_are_graftings(write, capsys):
    old = cell("grafting", 1, 0, 80.0)
    del old["setting"]["method"], old["stage1_joined"]
    old["phases"] = {"B0": {"seconds": PHASE["seconds"]}}
    assert comparison.main([str(write([old]))]) == 0
    assert "| grafting | 80.00 |" in (text := capsys.readouterr().out)
    assert "stage1" not in text and "Steps" not in text


def test_a_failed_cell_is_named(write, capsys):
    failed = {**cell("kd", 10, 0, 0.0), "status": "failed"}
    assert comparison.main([str(write([*CELLS, failed]))]) == 0
    assert "; failed: kd, 10-shot trial 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        ([cell("kd", 1, 0, 70.0, teacher_sha256="u")], "in its teacher sha256"),
        ([cell("kd", 10, 0, 70.0, subset_sha256="other")], "in its subset sha256"),
        ([cell("kd", 2, 0, 70.0, dataset="E")], "in its dataset"),
        ([cell("grafting", 1, 0, 80.0)], "grafting, 1-shot trial 0 is in two output directories"),
    ],
)
def test_other_experiments_are_refused_in_one_line(write, capsys, cells, line):
    write(CELLS[1:])
    folder = write(cells, "z")
    assert comparison.main([str(folder)]) == 2 and not (folder / "methods.md").exists()
    assert line in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_an_empty_folder_is_one_line(tmp_path, capsys):
    assert comparison.main([str(tmp_path)]) == 2
    assert "holds no output directory with results" in capsys.readouterr().err


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.parent.name)
def test_committed_tables_are_made_from_the_files_beside_them(table, tmp_path):
    folder = as_committed(table.parent, tmp_path)
    assert (folder / table.name).read_text() == comparison.markdown(comparison.read_methods(folder))
