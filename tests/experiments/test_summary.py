from threading import Thread

import pytest
from table_cells import CELLS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import figure, results, summary
from experiments.tensorboard import OVER_SHOTS
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
            for _ in range(5):
                summary.write_summary(tmp_path)
        except (OSError, BadInput) as error:
            failures.append(error)

    writers = [Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    curve = EventAccumulator(str(tmp_path / "tensorboard/summary/ours best"))
    curve.Reload()
    assert [event.step for event in curve.Scalars(OVER_SHOTS)] == [1, 10]


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
