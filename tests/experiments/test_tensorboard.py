import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiments import tensorboard
from experiments.tensorboard import AFTER, LEAD, MARGIN, CellCurves, TeacherCurves, filled, rewrite_cell, step_of
from grafting.distillation import Curve

SCHEDULE = [
    {"phase": phase, "span": span, "epochs": epochs, "lr_student": 2.5e-4, "lr_adapter": 1e-3, "batch": 12}
    for phase, span, epochs in (("B0", [3, 4], 4), ("L3", [3, 6], 3))
]
SETTING = {"dataset": "D", "shots": 2, "trial": 0, "seed": 5, "schedule": SCHEDULE}
RESULT = {
    "status": "done", "best": 70.0, "best_epoch": 2, "last": 60.0, "setting": SETTING, "teacher": {"accuracy": 92.5},
    "seconds": {"training": 2.0, "evaluation": 1.5},
    "phases": {
        "B0": {"losses": [4.0, 3.0, 2.0, 1.0], "accuracies": {"2": 40.0, "4": 50.0}},
        "L3": {"losses": [3.0, 2.0, 1.0], "accuracies": {"1": 55.0, "2": 70.0, "3": 60.0}},
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


def smoothed(values, weight=0.6):
    """As TensorBoard draws a line: an exponential moving average without the bias of its start."""
    last, line = 0.0, []
    for count, value in enumerate(values, start=1):
        last = last * weight + (1 - weight) * value
        line.append(last / (1 - weight**count))
    return line


def test_a_cells_epochs_count_through_its_phases(tmp_path):
    rewrite_cell(tmp_path, RESULT)
    run = events(tmp_path / RUN)
    assert points(run, "cells, N = 02/loss, B0") == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert points(run, "cells, N = 02/test %, B0") == [(1, 40.0), (2, 40.0), (3, 50.0), (4, 50.0)]
    assert points(run, "cells, N = 02/loss, L3") == [(5, 3.0), (6, 2.0), (7, 1.0)]
    assert points(run, "cells, N = 02/test %, L3") == [(5, 55.0), (6, 70.0), (7, 60.0)]
    level = points(run, "cells, N = 02/test %, teacher")
    assert (level[0][0], level[-1][0]) == (0, 7) and {value for _, value in level} == {92.5}
    assert charts(run) == {
        "N = 2": {
            "test % (epochs of B0 1-4, L3 5-7)": ["^cells, N = 02/test %, "], "loss": ["^cells, N = 02/loss, "],
        }
    }  # fmt: skip


def test_what_is_constant_is_in_the_text(tmp_path):
    rewrite_cell(tmp_path, RESULT)
    run = events(tmp_path / RUN)
    assert not [tag for tag in run.Tags()["scalars"] if "rate" in tag]
    assert "| phase | span | epochs | lr_student | lr_adapter | batch |" in text(run, "setting of a cell")
    assert "| B0 | [3, 4] | 4 | 0.00025 | 0.001 | 12 |" in text(run, "setting of a cell")
    assert "- seed: 5" in text(run, "setting of a cell")


def hparams_of(accumulator):
    data = accumulator.summary_metadata
    found = [
        HParamsPluginData.FromString(m.plugin_data.content)
        for m in data.values()
        if m.plugin_data.plugin_name == "hparams"
    ]
    return {kind: getattr(one, kind) for one in found for kind in [one.WhichOneof("data")]}


def test_hparams_list_a_cell_in_its_own_run(tmp_path):
    rewrite_cell(tmp_path, RESULT)
    assert [path.name for path in (tmp_path / RUN).parent.iterdir()] == ["trial-0"]
    run = events(tmp_path / RUN)
    found = hparams_of(run)
    start = found["session_start_info"].hparams
    assert {name: start[name].number_value or start[name].string_value for name in start} == {
        "N": 2, "trial": 0 or "", "seed": 5, "method": "grafting", "recipe": "D",
    }  # fmt: skip
    assert [metric.name.tag for metric in found["experiment"].metric_infos] == list(tensorboard.RESULT.values())
    values = {what: points(run, tag) for what, tag in tensorboard.RESULT.items()}
    assert values == {"best": [(301, 70.0)], "last": [(301, 60.0)], "best_epoch": [(301, 2.0)], "seconds": [(301, 3.5)]}
    assert "session_end_info" in found


def test_a_failed_cell_has_what_there_is(tmp_path):
    failed = {"status": "failed", "phase": "L3", "epoch": 1, "setting": SETTING, "teacher": {"accuracy": 92.5}}
    rewrite_cell(tmp_path, {**failed, "phases": {"B0": RESULT["phases"]["B0"]}})
    run = events(tmp_path / RUN)
    assert points(run, "cells, N = 02/loss, B0")[-1] == (4, 1.0)
    assert "session_end_info" not in hparams_of(run) and tensorboard.RESULT["best"] not in run.Tags()["scalars"]


def test_another_methods_run(tmp_path):
    schedule = [{"phase": p, "epochs": 1, "lr_student": 1e-3, "lr_adapter": 1e-3} for p in ("hint 3", "kd")]
    curves = CellCurves(tmp_path, SETTING | {"method": "fitnets", "schedule": schedule}, 92.5)
    curves("hint 3", Curve([3.0], {}))
    curves("kd", Curve([2.0], {1: 20.0}))
    curves.close()
    run = events(tmp_path / RUN)
    assert points(run, "cells, N = 02/loss, hint 3") == [(1, 3.0)]
    assert points(run, "cells, N = 02/test %, kd") == [(2, 20.0)]


def test_a_resumed_cell_leaves_one_whole_curve(tmp_path):
    first = CellCurves(tmp_path, SETTING, 92.5)
    first("B0", Curve([3.0, 2.0, 1.0], {}))
    first.close()
    second = CellCurves(tmp_path, SETTING, 92.5)
    second("B0", Curve([3.0, 2.0], {}))
    second("B0", Curve([3.0, 2.0, 0.5], {}))
    second.close()
    assert points(events(tmp_path / RUN), "cells, N = 02/loss, B0") == [(1, 3.0), (2, 2.0), (3, 0.5)]


LINE = [(1, 82.0, 2.0), (5, 93.75, 1.0), (9, 94.0, 0.5), (10, 89.0, 0.25), (50, 95.0, 0.0)]


def test_a_line_over_n_reads_right_though_it_is_smoothed():
    steps, means, _ = zip(*filled(LINE), strict=True)
    assert list(steps) == sorted(set(steps)) and steps[0] == 0 and len(steps) < (LEAD + AFTER) * len(LINE)
    drawn = dict(zip(steps, smoothed(means), strict=True))
    for shots, mean, _ in LINE:
        assert drawn[step_of(shots)] == pytest.approx(mean, abs=0.02)


def test_steps_of_neighbours_are_different():
    """Though they are close to each other where N is large; each has its own value there."""
    line = [(n, float(n), 0.0) for n in (436, 437, 498, 499, 500, 501)]
    steps, means, _ = zip(*filled(line), strict=True)
    assert list(steps) == sorted(set(steps))
    assert all(dict(zip(steps, means, strict=True))[step_of(n)] == n for n, _, _ in line)


def test_a_line_of_one_n():
    assert filled([(10, 91.0, 0.5)]) == [(1000, 91.0, 0.5)]


def write(output_dir, lines, figure=(0, 0, 9)):
    tensorboard.write_over_shots(output_dir, lines, np.full((2, 2, 3), figure, np.uint8), "| N |\n| - |")


def test_accuracy_over_n_has_a_margin_and_a_run_for_each_line(tmp_path):
    write(tmp_path, {"ours, best": LINE, "paper, best": [(1, 90.0, 0.5)]})
    directory = tmp_path / "tensorboard/accuracy over N"
    ours = events(directory / "ours, best")
    for tag, value in zip(MARGIN, (82.0, 80.0, 84.0), strict=True):
        assert points(ours, tag)[0] == (0, value)
    assert points(events(directory / "paper, best"), MARGIN[1]) == [(0, 89.5)]
    whole = events(directory)
    assert charts(whole) == {
        "accuracy over N": {"mean ± deviation, test %; N = 1, 5, 9, 10, 50 at 0, 699, 954, 1000, 1699": [tuple(MARGIN)]}
    }
    assert text(whole, "results") == "| N |\n| - |" and whole.Tags()["images"] == ["accuracy over N/figure"]


def test_the_figure_is_the_first_image_and_accuracy_over_n_the_first_of_all_runs():
    """TensorBoard sorts by name, and Custom Scalars lists the categories of the first run first."""
    others = ("confusion matrix/N = 01, trial 0", "few-shot images/N = 01", "cells, N = 01/loss, B0", "cells/01-shot")
    assert min((tensorboard.OVER_SHOTS, *others)) == tensorboard.OVER_SHOTS
    assert min(MARGIN) == MARGIN[0]  # the mean before its bounds


def test_what_is_written_again_replaces_what_was_there(tmp_path):
    write(tmp_path, {"ours, best": LINE, "paper, best": LINE})
    write(tmp_path, {"ours, best": [(1, 50.0, 0.0)]})
    directory = tmp_path / "tensorboard/accuracy over N"
    assert [path.name for path in directory.iterdir() if path.is_dir()] == ["ours, best"]
    assert points(events(directory / "ours, best"), MARGIN[0]) == [(0, 50.0)]
    assert len(list(directory.glob("events.*"))) == len(list((directory / "ours, best").iterdir())) == 1


def test_pictures_are_kept_one_for_each_tag(tmp_path):
    for tag, value in (("few-shot images/N = 01", 10), ("few-shot images/N = 02", 20), ("few-shot images/N = 01", 30)):
        tensorboard.write_picture(tmp_path, tag, np.full((3, 4, 3), value, np.uint8))
    run = events(tmp_path / "tensorboard/pictures")
    assert sorted(run.Tags()["images"]) == ["few-shot images/N = 01", "few-shot images/N = 02"]
    assert len(run.Images("few-shot images/N = 01")) == 1
    assert (run.Images("few-shot images/N = 02")[0].width, run.Images("few-shot images/N = 02")[0].height) == (4, 3)
    assert len(list((tmp_path / "tensorboard/pictures").iterdir())) == 2


def test_a_teachers_training(tmp_path):
    for epochs in ([{"loss": 3.0}], [{"loss": 3.0}, {"loss": 2.0, "learning_rate": 0.5}]):
        curves = TeacherCurves(tmp_path, "mine")
        assert epochs[1:] or not list(tmp_path.iterdir())  # nothing before the first epoch
        curves(epochs)
        curves.close()
    run = events(tmp_path / "tensorboard/teacher/mine")
    assert points(run, "training of a teacher/loss") == [(1, 3.0), (2, 2.0)]
    assert points(run, "training of a teacher/learning rate") == [(2, 0.5)]


def test_values_in_a_setting_are_short():
    assert tensorboard._brief(2.5e-4) == "0.00025" and tensorboard._brief("a") == "a"
    assert tensorboard._brief({"a": [1]}) == json.dumps({"a": [1]})
