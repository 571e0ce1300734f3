from dataclasses import replace
from threading import Thread

import pytest
from few_results import CELLS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import figure, results, summary, tables
from experiments.tensorboard import MARGIN, filled
from utils import files
from utils.errors import BadInput


def write_results(output_dir):
    for result in CELLS:
        result = result | {"setting": result["setting"] | {"dataset": "D"}}
        files.write_json(results.path_of(output_dir, result["setting"]["shots"], result["setting"]["trial"]), result)


def test_two_processes_at_once_leave_a_whole_table_and_whole_curves(tmp_path):
    write_results(tmp_path)
    failures = []

    def write():
        try:
            for _ in range(3):
                summary.write_summary(tmp_path)
        except (OSError, BadInput) as error:
            failures.append(error)

    writers = [Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    curve = EventAccumulator(str(tmp_path / "tensorboard/accuracy over N/ours, best"))
    curve.Reload()
    steps = [event.step for event in curve.Scalars(MARGIN[0])]
    assert steps == [step for step, *_ in filled([(1, 0, 0), (10, 0, 0)])] and (steps[0], steps[-1]) == (0, 1000)


def test_what_a_killed_process_left_of_a_table_is_removed(tmp_path):
    write_results(tmp_path)
    for name in (".table.md.0123abcd.tmp", ".table.csv.0123abcd.tmp"):
        (tmp_path / name).write_text("torn")
    summary.write_summary(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.usefixtures("real_pictures")
def test_files_of_a_summary(tmp_path):
    write_results(tmp_path)
    rows, text = summary.write_summary(tmp_path)
    assert [row.shots for row in rows] == [1, 10]
    assert text.startswith((tmp_path / "table.md").read_text()) and "missing: N = 10, trial 1, 2" in text
    (panel,) = figure.read_panels([tmp_path])
    assert (tmp_path / "accuracy.svg").read_bytes() == figure.draw([panel], "svg")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_without_results_nothing_is_left_behind(tmp_path):
    with pytest.raises(BadInput, match="no results found; give their --dataset or --output_dir"):
        summary.write_summary(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_the_lines_over_n_are_those_of_the_figure(tmp_path):
    write_results(tmp_path)
    (panel,) = figure.read_panels([tmp_path])
    assert summary.lines(panel) == {
        "ours, best": [(1, 81.0, pytest.approx(2**0.5)), (10, 91.5, 0.0)],
        "ours, last": [(1, 79.5, pytest.approx(0.5**0.5)), (10, 91.25, 0.0)],
        "our teacher": [(1, 92.3, 0.0), (10, 92.3, 0.0)],
    }
    papers = summary.lines(replace(panel, published={5: (92.88, 0.07)}, published_teacher=92.83))
    assert papers["paper, best"] == [(5, 92.88, 0.07)] and papers["paper's teacher"] == [(5, 92.83, 0.0)]


def test_the_text_names_table_teacher_and_commands(tmp_path):
    found = [
        CELLS[0]
        | {"command": ["train_fskd.py", "--teacher", "a b.pth"], "teacher": {"file": "a b.pth", "accuracy": 92.3}}
    ]
    panel = figure.panel(found)
    assert tables.markdown(panel.table) in (text := summary.text(panel, found))
    assert "Teacher a b.pth: test accuracy 92.30%." in text and "`python train_fskd.py --teacher 'a b.pth'`" in text


def test_what_the_results_hold_can_be_rebuilt(tmp_path):
    write_results(tmp_path)
    assert summary.rebuild(tmp_path) == summary.write_summary(tmp_path)
    runs = sorted(str(path.parent.relative_to(tmp_path / "tensorboard")) for path in tmp_path.rglob("events.*"))
    assert runs == [
        "accuracy over N", "accuracy over N/our teacher", "accuracy over N/ours, best", "accuracy over N/ours, last",
        "cells/01-shot/trial-0", "cells/01-shot/trial-1", "cells/01-shot/trial-2", "cells/10-shot/trial-0",
    ]  # fmt: skip


def test_a_full_disk_is_not_taken_for_a_damaged_result(tmp_path, monkeypatch):
    write_results(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(summary.tensorboard, "rewrite_cell", full)
    with pytest.raises(BadInput, match=r"tensorboard: cannot be written \(No space left on device\)"):
        summary.rebuild(tmp_path)


def test_a_result_with_damaged_curves_is_named(tmp_path):
    write_results(tmp_path)
    path = results.path_of(tmp_path, 10, 0)
    files.write_json(path, results.read(path) | {"phases": {"B0": {"losses": [1.0]}}})
    with pytest.raises(BadInput, match=r"trial-0\.json: not a result file of fskd, or damaged"):
        summary.rebuild(tmp_path)
