import threading

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiments import tensorboard
from experiments.tensorboard import (
    CellCurves,
    TeacherCurves,
    margin,
    rewrite_cell,
    write_over_shots,
    write_picture,
    write_trials,
)
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
RUN = "tensorboard/cells/trial-0"


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
    assert {tag: points(run, tag) for tag in run.Tags()["scalars"]} == {
        "D, N = 02/loss, B0": [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)],
        "D, N = 02/test %, B0": [(2, 40.0), (4, 50.0)],
        "D, N = 02/loss, L3": [(1, 3.0), (2, 2.0), (3, 1.0)],
        "D, N = 02/test %, L3": [(1, 55.0), (2, 70.0), (3, 60.0)],
    }
    for constant in (
        "Teacher: test accuracy 92.50%.",
        '"lr_adapter": 0.001',
        '"span": [ 3, 4 ]',
        '"seed": 5',
    ):
        assert constant in text(run, "D, N = 02/setting")


def of(dataset="D", shots=2, trial=0, **result):
    """RESULT, of another cell."""
    return RESULT | {"setting": SETTING | {"dataset": dataset, "shots": shots, "trial": trial}} | result


def test_the_cells_of_a_trial_share_a_run(tmp_path):
    """Of the paper's sixty cells, all runs are shown at once: TensorBoard shows none at first of more than 40."""
    cells = [of(shots=shots, trial=trial) for shots in (*range(1, 11), 20, 50) for trial in range(5)]
    for cell in cells:
        rewrite_cell(tmp_path, cell, pytest.fail)
    write_trials(tmp_path, cells, pytest.fail)
    runs = {path.parent for path in tmp_path.rglob("events.*")}
    assert len(runs) == 5 + 5
    run = events(tmp_path / "tensorboard/cells/trial-4")
    assert {tag.split("/")[0] for tag in run.Tags()["scalars"]} == {f"D, N = {n:02d}" for n in (*range(1, 11), 20, 50)}


def test_no_two_data_sets_share_a_tag(tmp_path):
    """In one --logdir, TensorBoard draws what has the same tag on one card."""
    tags = []
    for name in ("D", "Folder-\udcff"):  # a folder's name may hold bytes that are no text
        folder, cell = tmp_path / name[0], of(dataset=name)
        rewrite_cell(folder, cell, pytest.fail)
        write_trials(folder, [cell], pytest.fail)
        write_over_shots(folder, name, {"ours, best": LINE}, FIGURE, "", pytest.fail)
        write_picture(folder, f"{name}, few-shot images/N = 02", lambda: FIGURE, pytest.fail)
        curves = TeacherCurves(folder, "mine", name, pytest.fail)
        curves.update([{"loss": 3.0}])
        curves.close()
        kinds = [events(run).Tags() for run in {path.parent for path in folder.rglob("events.*")}]
        tags.append({tag for kind in kinds for tag in (*kind["scalars"], *kind["images"], *kind["tensors"])})
    assert len(tags[0]) == len(tags[1]) > 10
    assert {tag for tag in tags[0] & tags[1] if "config" not in tag and "hparams" not in tag} == set()


def test_hparams_list_a_trial_with_its_result_at_each_n(tmp_path):
    failed = {key: value for key, value in of(shots=5, status="failed").items() if key not in ("best", "last")}
    write_trials(tmp_path, [of(), of(shots=50, best=80.0, last=75.0), failed], pytest.fail)
    found = hparams_of(run := events(tmp_path / "tensorboard/results/trial-0"))
    start = found["session_start_info"].hparams
    assert {name: start[name].number_value or start[name].string_value for name in start} == {
        "trial": 0 or "", "seed": 5, "method": "grafting", "dataset": "D",
    }  # fmt: skip
    assert "session_end_info" in found
    assert {tag: points(run, tag) for tag in run.Tags()["scalars"]} == {
        "D, results/best, N = 02": [(2, 70.0)],
        "D, results/last, N = 02": [(2, 60.0)],
        "D, results/best, N = 50": [(50, 80.0)],
        "D, results/last, N = 50": [(50, 75.0)],
    }


def test_a_failed_cell_has_what_there_is(tmp_path):
    failed = {"status": "failed", "phase": "L3", "epoch": 1, "setting": SETTING, "teacher": {"accuracy": 92.5}}
    rewrite_cell(tmp_path, {**failed, "phases": {"B0": RESULT["phases"]["B0"]}}, pytest.fail)
    assert points(events(tmp_path / RUN), "D, N = 02/loss, B0")[-1] == (4, 1.0)


def test_a_resumed_cell_leaves_one_whole_curve(tmp_path):
    first = CellCurves(tmp_path, SETTING, 92.5, pytest.fail)
    first.update("B0", Curve([3.0, 2.0, 1.0], {}))
    first.close()
    second = CellCurves(tmp_path, SETTING, 92.5, pytest.fail)
    second.update("B0", Curve([3.0, 2.0], {}))
    second.update("B0", Curve([3.0, 2.0, 0.5], {}))
    second.close()
    assert points(events(tmp_path / RUN), "D, N = 02/loss, B0") == [(1, 3.0), (2, 2.0), (3, 0.5)]


LINE = [(1, 82.0, 2.0), (5, 93.75, 1.0), (50, 95.0, 0.0)]
FIGURE = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


def test_over_n_the_step_is_n_and_the_figure_an_image(tmp_path):
    lines = {"ours, best": LINE, "paper, best": [(1, 90.0, 0.5)]}
    write_over_shots(tmp_path, "D", lines, FIGURE, "| N |\n| - |", pytest.fail)
    directory = tmp_path / "tensorboard/accuracy over N"
    ours, whole = events(directory / "ours, best"), events(directory)
    assert [points(ours, tag) for tag in margin("D")] == [
        [(1, 82.0), (5, 93.75), (50, 95.0)],
        [(1, 80.0), (5, 92.75), (50, 95.0)],
        [(1, 84.0), (5, 94.75), (50, 95.0)],
    ]
    assert points(events(directory / "paper, best"), margin("D")[1]) == [(1, 89.5)]
    assert charts(whole) == {"D over N": {"mean ± standard deviation, test %": [tuple(margin("D"))]}}
    assert text(whole, "D over N/results") == "| N |\n| - |"
    (image,) = whole.Images("D over N/figure")
    assert (image.width, image.height) == (4, 2)


def test_what_is_written_again_replaces_what_was_there(tmp_path):
    write_over_shots(tmp_path, "D", {"ours, best": LINE, "paper, best": LINE}, FIGURE, "", pytest.fail)
    write_over_shots(tmp_path, "D", {"ours, best": [(1, 50.0, 0.0)]}, FIGURE, "", pytest.fail)
    directory = tmp_path / "tensorboard/accuracy over N"
    assert [path.name for path in directory.iterdir() if path.is_dir()] == ["ours, best"]
    assert points(events(directory / "ours, best"), margin("D")[0]) == [(1, 50.0)]
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
        curves = TeacherCurves(tmp_path, "mine", "D", pytest.fail)
        assert epochs[1:] or not list(tmp_path.iterdir())  # nothing before the first epoch
        curves.update(epochs)
        curves.close()
    run = events(tmp_path / "tensorboard/teacher/mine")
    assert points(run, "D, training of a teacher/loss") == [(1, 3.0), (2, 2.0)]
    assert points(run, "D, training of a teacher/learning rate") == [(2, 0.5)]


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
        run, epochs = TeacherCurves(tmp_path, name, "D", said.append), []
        for epoch in range(3):
            epochs.append({"loss": 1.0})
            run.update(epochs)
            if lost and epoch == 0:
                run.writer.flush()
                folder.rename(tmp_path / name)
        run.close()
    assert len(said) == 2 and all(line.startswith("TensorBoard's files cannot be written (") for line in said), said
    assert "Traceback" not in capfd.readouterr().err
