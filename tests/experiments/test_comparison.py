"""Several methods in one table: by hand, what belongs in one, and what does not."""

import pytest
from committed import as_committed, tracked
from matplotlib.figure import Figure

import train_fskd
from experiments import comparison, figure, results
from experiments.setting import student_name
from experiments.tables import DEVIATION
from utils import files
from utils.errors import BadInput

pytestmark = pytest.mark.usefixtures("real_pictures")
PHASE = {"seconds": {"training": 2.0, "evaluation": 9.0}, "steps": 100}
LAST = {"phase": "last", "span": [3, 6], "epochs": 100, "lr_student": 1e-4, "lr_adapter": 1e-4}
OF_RESNETS = {"networks": "resnet34-resnet18", "start": "fresh", "batchnorm": "training mode"}
FROM_TEACHER = {**OF_RESNETS, "start": "teacher", "batchnorm": "evaluation mode"}


def cell(method, shots, trial, last, **setting):
    grafting = method == "grafting"
    phases = dict.fromkeys(("B0", "B1", "B2", "L3") if grafting else (method,), PHASE)
    fields = {"dataset": "D", "teacher_sha256": "t", "subset_sha256": f"of {shots}", "method": method}
    return {
        "status": "done", "best": last + 1, "last": last, "phases": phases, "teacher": {"accuracy": 92.3},
        "stage1_joined": {"accuracy": 30.0, "seconds": 1.0} if grafting else None,
        "setting": {**fields, "schedule": [LAST], "shots": shots, "trial": trial, **setting},
    }  # fmt: skip


KD = cell("kd", 1, 0, 70.0)
CELLS = [KD, *(cell("grafting", *of_it) for of_it in ((1, 0, 80.0), (1, 1, 82.0), (10, 0, 90.0)))]


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """A function that runs the command on runs, each in a folder of its own; its status, and the table or the line."""
    monkeypatch.chdir(tmp_path)

    def run(*runs):
        for number, cells in enumerate(runs):
            for result in cells:
                setting = result["setting"]
                path = results.path_of(tmp_path / f"runs/{number}", setting["shots"], setting["trial"])
                files.write_json(path, result)
        status = train_fskd.main(["--compare", *(f"runs/{number}" for number in range(len(runs)))])
        shown, written = capsys.readouterr(), tmp_path / "runs/methods.md"
        if written.exists():
            assert shown.out == f"{written.read_text()}\nwritten in runs: methods.md, methods.png, methods.svg\n"
        return status, written.read_text() if written.exists() else shown.err

    return run


def rows(text):
    """The cells of the first table's rows, without its head."""
    lines = [line for line in text.split("\n\n")[2].splitlines() if line.startswith("|")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def test_the_tables_by_hand(compare):
    status, text = compare([KD], CELLS[1:])
    head, _, last, line, _, best, line_of_best, _, steps, _, seconds = text.strip().split("\n\n")
    assert status == 0 and head.startswith("D, teacher 92.30%;") and head.endswith("trials in a cell: 1 or 2")
    assert line == line_of_best == DEVIATION
    top = ["| method | N = 1 | N = 10 |", "| - | -: | -: |"]
    body = ["| grafting | {} |", "| stage1 | {} |", "| kd | {} | - |"]
    for found, values in (
        (last, ("81.00 ± 1.41 | 90.00", "30.00 ± 0.00 | 30.00", "70.00")),
        (best, ("82.00 ± 1.41 | 91.00", "- | -", "71.00")),
        (steps, ("400 ± 0 | 400", "300 ± 0 | 300", "100")),
        (seconds, ("8.0 ± 0.0 | 8.0", "6.0 ± 0.0 | 6.0", "2.0")),
    ):
        assert found.splitlines() == top + [row.format(value) for row, value in zip(body, values, strict=True)]


def test_a_folder_that_holds_runs_and_a_failed_cell(compare, tmp_path, capsys):
    compare([KD], CELLS[1:])
    before = (tmp_path / "runs/methods.md").read_text()
    failed = cell("whole", 1, 0, 60.0) | {"status": "failed"}
    files.write_json(tmp_path / "runs/whole/results/1-shot/trial-0.json", failed)
    assert train_fskd.main(["--compare", "runs", "--output_dir", "shown"]) == 1
    text = (tmp_path / "shown/methods.md").read_text()
    assert text == before.replace("1 or 2\n", "1 or 2; failed: whole, 1-shot trial 0\n")
    assert "written in shown: " in capsys.readouterr().out


def test_what_was_not_looked_for_is_not_in_the_tables(compare):
    """A best epoch; in results from before there were other methods, steps and stage 1 joined."""
    one_epoch = [LAST | {"selects_among": 1}]
    old = cell("grafting", 1, 0, 80.0, schedule=one_epoch)
    del old["setting"]["method"], old["stage1_joined"]
    old["phases"] = {"B0": {"seconds": PHASE["seconds"]}}
    _, text = compare([cell("kd", 1, 0, 70.0, schedule=one_epoch)], [old])
    assert "last epoch, %:" in text and "best epoch" not in text and "71.00" not in text and "stage1" not in text
    assert "| grafting | 80.00 |" in text and "| grafting | - |\n| kd | 100 |" in text and DEVIATION not in text


def test_the_seconds_of_a_start_are_those_of_every_trial_that_shares_it(compare):
    trials = [cell("kd", 1, trial, 50.0, start="teacher", student_width=0.5) for trial in (0, 1)]
    for trial, seconds in zip(trials, (60.0, 0.0), strict=True):
        trial["seconds"] = {"start": seconds}
    _, text = compare(trials[:1], trials[1:])
    assert text.rstrip().endswith("| kd, start teacher | 62.0 ± 0.0 |")


def test_remarks_say_where_best_or_machines_are_not_alike(compare):
    kd = cell("kd", 1, 0, 70.0, schedule=[LAST | {"epochs": 420}]) | {"machine": {"threads": 2}}
    _, text = compare([kd], [part | {"machine": {"threads": 1}} for part in CELLS[1:]])
    uneven = "The best is the highest of a row's last epochs, of which there are more in some rows: "
    assert text.strip().split("\n\n")[-2:] == [
        f"{uneven}100 in grafting, 420 in kd.", "mixed results: threads 1 (3), 2 (1)"
    ]  # fmt: skip


def test_starts_and_blocks_are_rows_of_their_own(compare):
    """Where one block is grafted, stage 1 is all, so it has no row. An unknown method has one."""
    part = cell("grafting", 1, 0, 60.0, **OF_RESNETS, schedule=[LAST | {"span": [3, 4]}])
    part["phases"] = {"B0": PHASE}
    runs = [cell("grafting", 1, 0, 50.0, **FROM_TEACHER, schedule=[LAST | {"span": [1, 5]}])], [part]
    whole = [cell("grafting", 1, 0, 40.0, **OF_RESNETS, schedule=[LAST | {"span": [1, 5]}])]
    status, text = compare(*runs, whole, [cell("later", 1, 0, 45.0, **OF_RESNETS, schedule=[LAST | {"span": [1, 5]}])])
    assert status == 0
    assert rows(text) == [
        ["grafting", "40.00"], ["stage1", "30.00"], ["grafting, blocks 3-3", "60.00"],
        ["grafting, start teacher", "50.00"], ["stage1, start teacher", "30.00"], ["later", "45.00"],
    ]  # fmt: skip


def test_a_students_name():
    for setting, name in (
        ({"method": "kd"}, "kd"),
        ({"method": "kd", "start": "teacher", "student_width": 0.25}, "kd, start teacher, width 0.25"),
        ({"method": "kd", "networks": "of a file of one's own"}, "kd, blocks 3-5"),
    ):
        assert student_name({"schedule": [LAST], **setting}) == name


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (cell("kd", 1, 0, 70.0, teacher_sha256="u"), "in its teacher sha256; leave one of them out"),
        (cell("kd", 10, 0, 70.0, subset_sha256="other"), "in its subset sha256"),
        (cell("kd", 1, 0, 70.0, subset_seed=1), "in its subset seed"),
        (cell("kd", 1, 0, 70.0, precision="bfloat16"), "in its precision"),
        (cell("kd", 2, 0, 70.0, dataset="E"), "in its dataset"),
        (cell("grafting", 1, 0, 80.0), "runs/1: holds grafting, 1-shot trial 0, as runs/0 does; leave one of them out"),
        (cell("grafting", 1, 2, 80.0, schedule=[LAST | {"lr_student": 1.0}]), "in its schedule"),
    ],
)
def test_other_experiments_are_refused_in_one_line(compare, other, line):
    status, error = compare(CELLS[1:], [other])
    assert status == 2 and line in error and error.count("\n") == 1


def test_a_folder_without_results_is_refused_in_one_line(tmp_path, capsys):
    assert train_fskd.main(["--compare", str(tmp_path)]) == 2
    line = f"train_fskd.py: {tmp_path}: no results found; name output directories, or a folder that holds some\n"
    assert capsys.readouterr().err == line


def test_the_figure_has_a_line_for_each_row_and_is_always_the_same():
    drawing = comparison.figure(CELLS, "svg")
    assert drawing == comparison.figure(CELLS, "svg") and drawing.startswith(b"<?xml")
    assert all(f"<!-- {name} -->".encode() in drawing for name in ("grafting", "stage1", "kd", "teacher"))
    assert b"<!-- whole -->" not in drawing


def test_no_axis_goes_over_100():
    axes = Figure().subplots()
    axes.errorbar([1, 10], [90.0, 99.5], [1.0, 2.0])
    figure.label(axes, [1, 10], "D")
    assert axes.get_ylim()[0] < 90 and axes.get_ylim()[1] == 100


@pytest.mark.parametrize("file", tracked("benchmarks/results/methods/*/methods.md"), ids=lambda file: file.parent.name)
def test_committed_tables_are_made_from_the_files_beside_them(file, tmp_path):
    folder = as_committed(file.parent, tmp_path)
    assert (folder / file.name).read_text() == comparison.markdown(comparison.read([folder]))


def test_runs_inside_a_run_are_read_too(tmp_path):
    """A sweep and `benchmarks.methods` have the same default folder."""
    for folder, result in (("", CELLS[1]), ("kd", KD), ("grafting", CELLS[2])):
        setting = result["setting"]
        files.write_json(results.path_of(tmp_path / folder, setting["shots"], setting["trial"]), result)
    assert sorted(comparison.cells_of(comparison.read([tmp_path]))) == ["grafting", "kd", "stage1"]
    files.write_json(results.path_of(tmp_path / "again", 1, 0), CELLS[1])
    with pytest.raises(BadInput, match=r"holds grafting, 1-shot trial 0, as .* does"):
        comparison.read([tmp_path])
