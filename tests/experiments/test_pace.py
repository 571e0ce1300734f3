from dataclasses import replace
from types import SimpleNamespace

import pytest
from small import frozen_teacher, short_recipe

from comparisons.methods import METHODS
from experiments.pace import Measured, Pace
from grafting.distillation import Curve


def cell(shots=1, subset=6):
    images = [None] * 3 * shots  # of three classes
    return SimpleNamespace(shots=shots, images=images, job=SimpleNamespace(subset_seed=subset))


def pace(*shots, method="grafting", recipe=None, said=None, processes=1, mixes_views=False):
    teacher = frozen_teacher()
    teacher.cache = None
    job = SimpleNamespace(
        method=METHODS[method], recipe=recipe or short_recipe(), args=SimpleNamespace(eval_every=None),
        process=SimpleNamespace(count=processes), announce=(said if said is not None else []).append,
        mixes_views=mixes_views,
    )  # fmt: skip
    cells = [cell(n) for n in shots]
    made = Pace(job, cells, teacher, of_teacher=9.0)
    made.begin(cells[0])
    return made, cells[0]


def curve(epochs, training, evaluation, *tested):
    return Curve([1.0] * epochs, dict.fromkeys(tested, 50.0), {"training": training, "evaluation": evaluation})


CURVES = {
    "B0": curve(3, 3.0, 30.0, 1, 2, 3),
    "B1": curve(2, 1.0, 2.0, 1, 2),
    "B2": curve(2, 0.5, 1.0, 1, 2),
    "L2": curve(2, 2.0, 40.0, 1, 2),
}


def test_what_is_left_of_a_cell_is_counted_in_seconds_not_in_epochs():
    """Of short_recipe's 13 epochs 10 are done; the three of L3 that are left take as long as its first."""
    made, running = pace(1, recipe=short_recipe((3, 2), (2, 4)))
    curves = CURVES | {"L3": curve(1, 4.0, 60.0, 1)}
    made.measure(running, curves)
    assert made.left_of(running, curves) == pytest.approx(3 * (4.0 + 60.0))


def test_a_phase_that_was_not_measured_takes_as_its_work_says():
    made, running = pace(1, recipe=short_recipe((3, 2), (2, 4)))
    made.measure(running, {"B0": CURVES["B0"]})
    work = made._work()
    assert set(work) == {"teacher", "B0", "B1", "B2", "L2", "L3"}
    assert work["B0"][1] > work["B1"][1] > work["B2"][1] and work["B0"][0] > work["B0"][1]
    by_name = {phase.name: phase for phase in made.phases}
    assert made._test(by_name["L3"]) == pytest.approx(10.0 * work["L3"][1] / work["B0"][1])
    assert made._step(by_name["L3"], 6) == pytest.approx((work["L3"][0] / work["B0"][0]) ** 0.5)


def test_cells_of_larger_batches_and_their_features_take_longer():
    made, running = pace(1, 4, recipe=short_recipe((3, 2), (2, 4)))
    made.teacher.cache = SimpleNamespace(filled=range(3))
    curves = CURVES | {"L3": curve(4, 4.0, 60.0, 1, 2, 3, 4)}
    training, tests = 3.0 + 1.0 + 0.5 + 2.0 + 4.0, 30.0 + 2.0 + 1.0 + 40.0 + 60.0
    made.began -= training + tests + 30.0  # the teacher's features took 30 seconds
    made.measure(running, curves)
    waiting = training * (25 / 6) ** 0.5 + tests + 10.0 * (12 - 3)
    assert made.left(running, curves) == pytest.approx(waiting, rel=1e-2)
    made.waiting.append(cell(4, subset=7))  # of other images, whose features are computed anew
    assert made.left(running, curves) == pytest.approx(2 * waiting + 10.0 * 3, rel=1e-2)


def test_mixed_views_and_what_is_fitted_to_them_are_computed_once_for_each_subset():
    made, running = pace(1, 1, 4, 4, recipe=short_recipe((3, 2), (2, 4)), mixes_views=True)
    curves = CURVES | {"L3": curve(4, 4.0, 60.0, 1, 2, 3, 4)}
    training, tests = 3.0 + 1.0 + 0.5 + 2.0 + 4.0, 30.0 + 2.0 + 1.0 + 40.0 + 60.0
    made.began -= training + tests + 90.0
    made.measure(running, curves)
    of_trials = 3 * tests + training * (1 + 2 * (25 / 6) ** 0.5)
    assert made.left(running, curves) == pytest.approx(of_trials + 90.0, rel=1e-2)
    made.begin(made.waiting[0])  # its second trial has them from the first
    made.measure(made.waiting[0], curves)
    assert made._features() == pytest.approx(90.0, rel=1e-2)


def test_the_steps_of_a_phase_of_many_views_are_counted():
    """Its 4 epochs show about 100 views each, in two batches, whatever N is."""
    made, running = pace(1, 4, recipe=replace(short_recipe((3, 2), (2, 4)), least_views=400))
    curves = CURVES | {"L3": curve(1, 4.0, 60.0, 1)}
    made.measure(running, curves)
    assert made.measured["L3"] == Measured(2.0, 64, 60.0)
    earlier = sum(sum(CURVES[name].seconds.values()) for name in ("B0", "B1", "B2", "L2"))
    assert made.left_of(running, {}) == pytest.approx(earlier + 4 * (2 * 2.0 + 60.0))


def test_a_pass_over_mixed_views_takes_as_long_for_every_n():
    made, running = pace(1, 50, method="least-squares", mixes_views=True)
    made.measure(running, {"fit": curve(1, 20.0, 1.0, 1)})
    assert made.left_of(made.waiting[0], {}) == pytest.approx(21.0)


def test_before_the_first_test_a_students_takes_as_the_teachers():
    """Per multiply-add, and a third on a CPU, where a student's blocks are matrix products."""
    made, running = pace(1)
    made.measure(running, {"B0": curve(1, 9.0, 0.0)})
    work = made._work()
    assert made.is_known and made._test(made.phases[0]) == pytest.approx(9.0 * work["B0"][1] / work["teacher"][1] / 3)


def test_the_whole_is_said_once_after_some_seconds():
    said = []
    made, running = pace(1, 1, recipe=short_recipe((3, 2), (2, 4)), said=said)
    made.measure(running, {"B0": curve(1, 4.0, 0.0)})
    made.predict(running, {})
    assert not made.is_known and said == []
    for seconds in (90.0, 100.0):
        curves = CURVES | {"L3": curve(1, 4.0, seconds, 1)}
        made.measure(running, curves)
        made.predict(running, curves)
    whole = 2 * (10.5 + 73.0 + 3 * (90.0 + 4.0) + 90.0)
    assert said == [f"2 cells: about {whole / 60:.0f} min, estimated from the first epochs"]


def test_the_processes_of_torchrun_share_what_waits():
    curves = CURVES | {"L3": curve(4, 4.0, 60.0, 1, 2, 3, 4)}
    left = []
    for processes in (1, 2):
        made, running = pace(1, 1, 1, recipe=short_recipe((3, 2), (2, 4)), processes=processes)
        made.measure(running, curves)
        left.append(made.left(running, curves))
    assert left[1] == pytest.approx(left[0] / 2)


@pytest.mark.parametrize("method", ["kd", "fitnets", "whole", "grafting-back", "grafting-straight"])
def test_the_work_of_every_method_that_trains_is_counted(method):
    made, _ = pace(1, method=method, recipe=replace(short_recipe(), selects_among=1))
    assert set(made._work()) == {"teacher", *(phase.name for phase in made.phases)} and all(
        min(work) > 0 for work in made.work.values()
    )
