import threading

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiments import tensorboard
from experiments.tensorboard import MARGIN, CellCurves, TeacherCurves, rewrite_cell, write_over_shots, write_picture
from grafting.distillation import Curve

SCHEDULE = [
    {"phase": phase, "span": span, "epochs": epochs, "lr_student": 2.5e-4, "lr_adapter": 1e-3, "batch": 12}
    for phase, span, epochs in (("B0", [3, 4], 4), ("L3", [3, 6], 3))
]
SETTING = {"dataset": "D", "shots": 2, "trial": 0, "seed": 5, "method": "grafting", "schedule": SCHEDULE}
RESULT = {
    "status": "done", "best": 70.0, "best_epoch": 2, "last": 60.0, "setting": SETTING, "teacher": {"accuracy": 92.5},
    "seconds": {"training": 2.0, "evaluation": 1.5},
    "phases": {
        "B0": {"losses": [4.0, 3.0, 2.0, 1.0], "accuracies": {"2": 40.0, "4": 50.0}, "seconds": {}},
        "L3": {"losses": [3.0, 2.0, 1.0], "accuracies": {"1": 55.0, "2": 70.0, "3": 60.0}, "seconds": {}},
    },
}  # fmt: skip
RUN = "tensorboard/cells/02-shot/trial-0"


def events(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def points(accumulator, tag):
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def charts(accumulator):
    """{category: {title: tags}} of Custom Scalars."""
    (event,) = accumulator.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    return {
        category.title: {
            chart.title: [*chart.multiline.tag, *((s.value, s.lower, s.upper) for s in chart.margin.series)]
            for chart in category.chart
        }
        for category in layout.category
    }


def text(accumulator, tag):
    return accumulator.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def hparams_of(accumulator):
    plugins = [metadata.plugin_data for metadata in accumulator.summary_metadata.values()]
    found = [HParamsPluginData.FromString(data.content) for data in plugins if data.plugin_name == "hparams"]
    return {kind: getattr(one, kind) for one in found for kind in [one.WhichOneof("data")]}


def test_a_cells_points_stand_where_something_was_measured(tmp_path):
    """A loss for every epoch, a test accuracy where there is one; the step is the phase's epoch."""
    rewrite_cell(tmp_path, RESULT, pytest.fail)
    run = events(tmp_path / RUN)
    curves = {tag: points(run, tag) for tag in run.Tags()["scalars"] if not tag.startswith("result/")}
    assert curves == {
        "cells, N = 02/loss, B0": [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)],
        "cells, N = 02/test %, B0": [(2, 40.0), (4, 50.0)],
        "cells, N = 02/loss, L3": [(1, 3.0), (2, 2.0), (3, 1.0)],
        "cells, N = 02/test %, L3": [(1, 55.0), (2, 70.0), (3, 60.0)],
    }
    for constant in (
        "Teacher: test accuracy 92.50%.",
        '"lr_adapter": 0.001',
        '"span": [ 3, 4 ]',
        '"seed": 5',
    ):
        assert constant in text(run, "setting of a cell")


def test_hparams_list_a_cell_in_its_own_run(tmp_path):
    rewrite_cell(tmp_path, RESULT, pytest.fail)
    assert [path.name for path in (tmp_path / RUN).parent.iterdir()] == ["trial-0"]
    found = hparams_of(run := events(tmp_path / RUN))
    start = found["session_start_info"].hparams
    assert {name: start[name].number_value or start[name].string_value for name in start} == {
        "N": 2, "trial": 0 or "", "seed": 5, "method": "grafting", "dataset": "D",
    }  # fmt: skip
    assert [metric.name.tag for metric in found["experiment"].metric_infos] == list(tensorboard.RESULT.values())
    values = {what: points(run, tag) for what, tag in tensorboard.RESULT.items()}
    assert values == {"best": [(2, 70.0)], "last": [(2, 60.0)], "best_epoch": [(2, 2.0)], "seconds": [(2, 3.5)]}
    assert "session_end_info" in found


def test_a_failed_cell_has_what_there_is(tmp_path):
    failed = {"status": "failed", "phase": "L3", "epoch": 1, "setting": SETTING, "teacher": {"accuracy": 92.5}}
    rewrite_cell(tmp_path, {**failed, "phases": {"B0": RESULT["phases"]["B0"]}}, pytest.fail)
    run = events(tmp_path / RUN)
    assert points(run, "cells, N = 02/loss, B0")[-1] == (4, 1.0)
    assert "session_end_info" not in hparams_of(run) and tensorboard.RESULT["best"] not in run.Tags()["scalars"]


def test_a_resumed_cell_leaves_one_whole_curve(tmp_path):
    first = CellCurves(tmp_path, SETTING, 92.5, pytest.fail)
    first.update("B0", Curve([3.0, 2.0, 1.0], {}))
    first.close()
    second = CellCurves(tmp_path, SETTING, 92.5, pytest.fail)
    second.update("B0", Curve([3.0, 2.0], {}))
    second.update("B0", Curve([3.0, 2.0, 0.5], {}))
    second.close()
    assert points(events(tmp_path / RUN), "cells, N = 02/loss, B0") == [(1, 3.0), (2, 2.0), (3, 0.5)]


LINE = [(1, 82.0, 2.0), (5, 93.75, 1.0), (50, 95.0, 0.0)]
FIGURE = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


def test_over_n_the_step_is_n_and_the_figure_an_image(tmp_path):
    write_over_shots(
        tmp_path, {"ours, best": LINE, "paper, best": [(1, 90.0, 0.5)]}, FIGURE, "| N |\n| - |", pytest.fail
    )
    directory = tmp_path / "tensorboard/accuracy over N"
    ours, whole = events(directory / "ours, best"), events(directory)
    assert [points(ours, tag) for tag in MARGIN] == [
        [(1, 82.0), (5, 93.75), (50, 95.0)],
        [(1, 80.0), (5, 92.75), (50, 95.0)],
        [(1, 84.0), (5, 94.75), (50, 95.0)],
    ]
    assert points(events(directory / "paper, best"), MARGIN[1]) == [(1, 89.5)]
    assert charts(whole) == {"accuracy over N": {"mean ± standard deviation, test %": [tuple(MARGIN)]}}
    assert text(whole, "results") == "| N |\n| - |"
    (image,) = whole.Images("accuracy over N/figure")
    assert (image.width, image.height) == (4, 2)


def test_what_is_written_again_replaces_what_was_there(tmp_path):
    write_over_shots(tmp_path, {"ours, best": LINE, "paper, best": LINE}, FIGURE, "", pytest.fail)
    write_over_shots(tmp_path, {"ours, best": [(1, 50.0, 0.0)]}, FIGURE, "", pytest.fail)
    directory = tmp_path / "tensorboard/accuracy over N"
    assert [path.name for path in directory.iterdir() if path.is_dir()] == ["ours, best"]
    assert points(events(directory / "ours, best"), MARGIN[0]) == [(1, 50.0)]
    assert len(list(directory.glob("events.*"))) == len(list((directory / "ours, best").iterdir())) == 1


def test_pictures_are_kept_one_for_each_tag(tmp_path):
    for tag, value in (("few-shot images/N = 01", 10), ("few-shot images/N = 02", 20), ("few-shot images/N = 01", 30)):
        write_picture(tmp_path, tag, lambda value=value: np.full((3, 4, 3), value, np.uint8), pytest.fail)
    run = events(tmp_path / "tensorboard/pictures")
    assert sorted(run.Tags()["images"]) == ["few-shot images/N = 01", "few-shot images/N = 02"]
    assert len(run.Images("few-shot images/N = 01")) == 1
    assert (run.Images("few-shot images/N = 02")[0].width, run.Images("few-shot images/N = 02")[0].height) == (4, 3)
    assert len(list((tmp_path / "tensorboard/pictures").iterdir())) == 2


def test_a_teachers_training(tmp_path):
    for epochs in ([{"loss": 3.0}], [{"loss": 3.0}, {"loss": 2.0, "learning_rate": 0.5}]):  # the second time resumed
        curves = TeacherCurves(tmp_path, "mine", pytest.fail)
        assert epochs[1:] or not list(tmp_path.iterdir())  # nothing before the first epoch
        curves.update(epochs)
        curves.close()
    run = events(tmp_path / "tensorboard/teacher/mine")
    assert points(run, "training of a teacher/loss") == [(1, 3.0), (2, 2.0)]
    assert points(run, "training of a teacher/learning rate") == [(2, 0.5)]


def test_any_error_is_one_line_per_run(tmp_path):
    said, written = [], []

    def fail(writer):
        written.append(writer)
        raise TypeError("of protobuf")

    run = tensorboard.Run(tmp_path, said.append)
    for _ in range(2):
        run.write(fail)
    run.close()
    assert (
        said == ["TensorBoard's files cannot be written (of protobuf); no result depends on it"] and len(written) == 1
    )


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("lost", [False, True])
def test_a_broken_folder_is_one_line_per_run(tmp_path, capfd, monkeypatch, lost):
    """No folder from the beginning, or lost while the run is written."""
    monkeypatch.setattr(threading, "excepthook", tensorboard._quiet(threading.excepthook))  # in front of pytest's
    said, folder = [], tmp_path / "tensorboard"
    if not lost:
        folder.write_text("no folder")
    for name in ("one", "two"):
        run, epochs = TeacherCurves(tmp_path, name, said.append), []
        for epoch in range(3):
            epochs.append({"loss": 1.0})
            run.update(epochs)
            if lost and epoch == 0:
                run.writer.flush()
                folder.rename(tmp_path / name)
        run.close()
    assert len(said) == 2 and all(line.startswith("TensorBoard's files cannot be written (") for line in said), said
    assert "Traceback" not in capfd.readouterr().err
