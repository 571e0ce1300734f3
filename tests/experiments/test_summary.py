from dataclasses import replace
from threading import Thread

import pytest
from few_results import CELLS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import figure, results, summary, tables
from experiments.tensorboard import margin
from utils import files
from utils.errors import BadInput


@pytest.fixture
def folder(tmp_path):
    """An output directory with four results."""
    for result in CELLS:
        phases = {"B0": {"losses": [1.0], "accuracies": {}, "seconds": {}}}
        result = result | {"setting": result["setting"] | {"dataset": "D"}, "phases": phases}
        files.write_json(results.path_of(tmp_path, result["setting"]["shots"], result["setting"]["trial"]), result)
    return tmp_path


def test_two_processes_at_once_leave_a_whole_table_and_whole_curves(folder):
    failures = []

    def write():
        try:
            for _ in range(3):
                summary.write_summary(folder, failures.append)
        except (OSError, BadInput) as error:
            failures.append(error)

    writers = [Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    curve = EventAccumulator(str(folder / "tensorboard/accuracy over N/ours, best"))
    curve.Reload()
    assert [event.step for event in curve.Scalars(margin("D")[0])] == [1, 10]


@pytest.mark.usefixtures("real_pictures")
def test_files_of_a_summary(folder):
    leftovers = [folder / f".{name}.0123abcd.tmp" for name in ("table.md", "table.csv")]  # of a killed process
    for leftover in leftovers:
        leftover.write_text("torn")
    rows, text, _ = summary.write_summary(folder, pytest.fail)
    assert [row.shots for row in rows] == [1, 10]
    assert text.startswith((folder / "table.md").read_text()) and "missing: N = 10, trial 1, 2" in text
    (panel,) = figure.read_panels([folder])
    assert (folder / "accuracy.svg").read_bytes() == figure.draw([panel], "svg")
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not [leftover for leftover in leftovers if leftover.exists()]


def test_without_results_nothing_is_left_behind(tmp_path):
    with pytest.raises(BadInput, match="no results found; give their --dataset or --output_dir"):
        summary.write_summary(tmp_path / "nowhere", pytest.fail)
    assert not list(tmp_path.iterdir())


def test_the_lines_over_n_are_those_of_the_figure(folder):
    (panel,) = figure.read_panels([folder])
    assert panel.accuracies == {
        "ours, best": [(1, 81.0, pytest.approx(2**0.5)), (10, 91.5, 0.0)],
        "ours, last": [(1, 79.5, pytest.approx(0.5**0.5)), (10, 91.25, 0.0)],
        "our teacher": [(1, 92.3, 0.0), (10, 92.3, 0.0)],
    }
    papers = replace(panel, published={5: (92.88, 0.07)}, published_teacher=92.83).accuracies
    assert [shots for shots, *_ in papers["our teacher"]] == [1, 10]
    assert papers["paper, best"] == [(5, 92.88, 0.07)] and papers["paper's teacher"] == [(5, 92.83, 0.0)]


def test_the_text_names_table_teacher_and_commands():
    command = {"command": ["train_fskd.py", "--teacher", "a b.pth"]}
    found = [CELLS[0] | command | {"teacher": {"file": "a b.pth", "accuracy": 92.3}}]
    panel = figure.panel(found)
    assert tables.markdown(panel.table) in (text := summary.as_text(panel, found))
    assert "Teacher a b.pth: test accuracy 92.30%." in text and "`python train_fskd.py --teacher 'a b.pth'`" in text


def test_what_the_results_hold_can_be_rebuilt(folder):
    rows, text, _ = summary.write_summary(folder, pytest.fail)
    written = f"written in {folder}: table.md, table.csv, accuracy.png, accuracy.svg, tensorboard"
    assert summary.rebuild(folder, pytest.fail) == (rows, f"{text}\n{written}")
    runs = sorted(str(path.parent.relative_to(folder / "tensorboard")) for path in folder.rglob("events.*"))
    assert runs == [
        "accuracy over N", "accuracy over N/our teacher", "accuracy over N/ours, best", "accuracy over N/ours, last",
        "cells/trial-0", "cells/trial-0", "cells/trial-1", "cells/trial-2",
        "results/trial-0", "results/trial-1", "results/trial-2",
    ]  # fmt: skip


def test_where_tensorboard_cannot_be_written_there_is_the_table(folder):
    """The folder's fault is not taken for a damaged result."""
    said = []
    (folder / "tensorboard").write_text("no folder")
    _, text = summary.rebuild(folder, said.append)
    assert text.endswith(": table.md, table.csv, accuracy.png, accuracy.svg") and "|  1 | 81.00" in text
    assert len(said) == 1 + 3 + len(CELLS)  # of three trials
    assert all(line.startswith("TensorBoard's files cannot be written (") for line in said)


def test_a_result_with_damaged_curves_is_named(folder):
    path = results.path_of(folder, 10, 0)
    files.write_json(path, results.read(path) | {"phases": {"B0": {"losses": [1.0]}}})
    with pytest.raises(BadInput, match=r"trial-0\.json: not a result file of fskd, or damaged"):
        summary.rebuild(folder, pytest.fail)
