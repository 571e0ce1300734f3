import numpy as np
import pytest
from small import pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.tensorboard import CellCurves, grid_of, write_accuracy_over_shots
from grafting.distillation import Curve

SETTING = {"seed": 0, "schedule": [{"phase": p, "lr_student": 2.5e-4, "lr_adapter": 1e-3} for p in ("B0", "L3")]}


def events(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def points(accumulator, tag):
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_a_cells_run(tmp_path):
    curves = CellCurves(tmp_path, 2, 0, SETTING, pictures(6))
    curve = Curve([3.0], {})
    curves("B0", curve)
    curve.losses.append(2.0)
    curve.accuracies[2] = 50.0
    curves("B0", curve)
    curves.close()
    run = events(tmp_path / "tensorboard/02-shot/trial-0")
    assert points(run, "grafting, stage 1: loss/B0") == [(1, 3.0), (2, 2.0)]
    assert points(run, "grafting, stage 1: test %/B0") == [(2, 50.0)]
    assert points(run, "learning rate/B0, student") == [(1, pytest.approx(2.5e-4)), (2, pytest.approx(2.5e-4))]
    assert run.Tags()["images"] and any("configuration" in tag for tag in run.Tags()["tensors"])
    assert any("custom_scalars" in tag for tag in run.Tags()["tensors"])


def test_another_methods_run(tmp_path):
    schedule = [{"phase": p, "lr_student": 1e-3, "lr_adapter": 1e-3} for p in ("hint 3", "kd")]
    curves = CellCurves(tmp_path, 2, 0, {"method": "fitnets", "schedule": schedule}, pictures(6))
    curves("hint 3", Curve([3.0], {1: 20.0}))
    curves.close()
    run = events(tmp_path / "tensorboard/02-shot/trial-0")
    assert points(run, "fitnets: loss/hint 3") == [(1, 3.0)] and points(run, "fitnets: test %/hint 3") == [(1, 20.0)]


def test_a_resumed_cell_leaves_one_whole_curve(tmp_path):
    first = CellCurves(tmp_path, 2, 0, SETTING, pictures(6))
    first("B0", Curve([3.0, 2.0, 1.0], {}))
    first.close()
    second = CellCurves(tmp_path, 2, 0, SETTING, pictures(6))
    second("B0", Curve([3.0, 2.0], {}))
    second("B0", Curve([3.0, 2.0, 0.5], {}))
    second.close()
    run = events(tmp_path / "tensorboard/02-shot/trial-0")
    assert points(run, "grafting, stage 1: loss/B0") == [(1, 3.0), (2, 2.0), (3, 0.5)]


def test_the_pictures_are_a_class_per_row():
    images = np.zeros((6, 3, 32, 32), np.uint8)
    images[2:4] = 200  # the second of three classes at two shots
    grid = grid_of(images, 2)
    assert grid.shape == (3, 3 * 33 + 1, 2 * 33 + 1)
    assert grid[:, 34:65, 1:33].min() == 200 and grid[:, 1:33, 1:33].max() == 0


def test_accuracy_over_n_has_the_papers_line_beside_ours(tmp_path):
    lines = {"ours best": [(10, 91.0)], "ours last": [(10, 90.5)], "teacher": [(10, 92.3)], "paper": [(10, 92.89)]}
    write_accuracy_over_shots(tmp_path, lines)
    tag = "accuracy over N/best of L3, test %"
    for run, value in (("ours best", 91.0), ("ours last", 90.5), ("teacher", 92.3), ("paper", 92.89)):
        assert points(events(tmp_path / "tensorboard/summary" / run), tag) == [(10, pytest.approx(value))]
