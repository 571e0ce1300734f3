import math
from dataclasses import replace

import pytest
import torch
from small import frozen_teacher, pictures, short_recipe
from torch import nn

from data.views import Views
from grafting import distillation
from grafting.distillation import Distillation, NotFinite, distance, draw_views
from grafting.inputs import Inputs
from grafting.scions import graft, parameters_by_role, scions
from grafting.teacher import FrozenTeacher

PURPOSE = (0, 1, 0)  # seed, N, trial
PHASES = short_recipe().phases


def test_distance_by_hand():
    student = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    teacher = torch.tensor([[4.0, 3.0], [5.0, 0.0]])
    # (3/5 - 4/5)^2 + (4/5 - 3/5)^2 = 0.08 and 1 + 1 = 2
    assert distance(student, teacher).item() == pytest.approx(2.08)
    assert distance(10 * student, teacher).item() == pytest.approx(2.08)


def test_distance_of_vanishing_logits_is_clamped():
    assert distance(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(1.0)
    assert distance(torch.tensor([[1e-13, 0.0]]), torch.zeros(1, 2)).item() == pytest.approx(0.01)


@pytest.fixture
def inputs():
    """14 images: at N = 1, batches of 6, 6 and 2."""
    return Inputs(frozen_teacher(), pictures(14))


def fresh(inputs, phase):
    i, j = (block - 3 for block in phase.span)
    return nn.Sequential(*scions(inputs.teacher, torch.Generator().manual_seed(0))[i:j])


def distil(inputs, phase, eval_every=2, after=lambda d: None):
    run = Distillation(phase, fresh(inputs, phase), shots=1)
    run.run(inputs, PURPOSE, eval_every, after)
    return run


@pytest.mark.parametrize("phase", PHASES, ids=[phase.name for phase in PHASES])
def test_two_epochs_are_those_of_a_loop_by_hand_and_only_the_scion_changes(inputs, phase):
    """Every epoch's own order and views go into the graft; each role has an Adam of its own rate."""
    phase, teacher = replace(phase, epochs=2), inputs.teacher
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    run = distil(inputs, phase)
    assert all(torch.equal(value, before[key]) for key, value in teacher.network.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    untrained, scion, images = fresh(inputs, phase), fresh(inputs, phase), torch.from_numpy(pictures(14))
    roles = zip(parameters_by_role(scion), phase.learning_rates(1), strict=True)
    optimizers = [torch.optim.Adam(parameters, lr=rate) for parameters, rate in roles]
    for epoch in (1, 2):
        order, views = draw_views(inputs, len(inputs), *PURPOSE, phase.name, epoch)
        for image, view in zip(order.split(6), views.split(6), strict=True):
            shown = teacher.normalization(Views(32).crop(Views(32).pad(images), image, view))
            loss = distance(graft(teacher.blocks, scion, phase.span, shown), teacher.network(shown))
            scion.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    for ours, by_hand, old in zip(run.scion.parameters(), scion.parameters(), untrained.parameters(), strict=True):
        assert torch.allclose(ours, by_hand, rtol=0, atol=1e-6 * by_hand.abs().max().item())
        assert not torch.equal(ours, old)


def test_an_epoch_has_every_image_in_batches_with_a_smaller_last_one(inputs, monkeypatch):
    sizes, measured = [], distillation.distance
    monkeypatch.setattr(distillation, "distance", lambda s, t: sizes.append(len(s)) or measured(s, t))
    run = distil(inputs, replace(PHASES[0], epochs=2))
    assert sizes == [6, 6, 2] * 2 and run.curve.steps == 6


def test_dropout_draws_from_the_seed_key(inputs):
    """Not from what ran before: two runs agree, and two epochs do not drop the same."""
    phase, dropped = replace(PHASES[0], epochs=2), []

    def losses(random_state):
        torch.manual_seed(random_state)
        scion = fresh(inputs, phase).insert(1, dropout := nn.Dropout())
        dropout.register_forward_hook(lambda _, before, after: dropped.append(after.count_nonzero().item()))
        run = Distillation(phase, scion, shots=1)
        run.run(inputs, PURPOSE, None, lambda _: None)
        return run.curve.losses

    assert losses(1) == losses(2)
    first, second = dropped[: len(dropped) // 2], dropped[len(dropped) // 2 :]
    assert first == second and len(set(first)) > 2


def test_a_phase_of_many_views_shows_every_image_equally_often_in_batches_of_ten_shots(inputs, monkeypatch):
    shown, draw = [], distillation.draw_views
    monkeypatch.setattr(distillation, "draw_views", lambda *key: shown.append(draw(*key)[0]) or draw(*key))
    run = distil(inputs, replace(PHASES[0], epochs=2, least_views=275))
    assert [torch.bincount(order).tolist() for order in shown] == [[10] * 14] * 2
    assert run.batch == 64 and run.curve.steps == 2 * 3
    assert replace(PHASES[0], least_views=275).batch(20) == PHASES[0].batch(20) == 128


@pytest.mark.parametrize(
    ("epochs", "eval_every", "selects_among", "measured"),
    [
        (5, 2, 0, [2, 4, 5]),
        (5, 2, 5, [1, 2, 3, 4, 5]),
        (3, None, 0, [1, 2, 3]),
        (12, None, 0, [3, 6, 9, 12]),
        (16, None, 0, [4, 8, 12, 16]),
    ],
)
def test_accuracy_is_measured_when_asked_and_at_the_end_or_about_five_times(
    epochs, eval_every, selects_among, measured
):
    phase = replace(PHASES[3], epochs=epochs, selects_among=selects_among)
    assert [epoch for epoch in range(1, epochs + 1) if phase.measures(epoch, eval_every)] == measured


@pytest.mark.parametrize(
    ("figures", "selects_among", "eval_every", "measured", "best"),
    [
        (range(99, 0, -1), 3, None, [2, 4, 6, 8, 9, 10], 8),  # they fall, but only the last three may be best
        (range(99, 0, -1), 3, 3, [3, 6, 8, 9, 10], 8),
        ([50, 70, 70, 60, 0, 0, 0, 0, 0, 0], 10, None, list(range(1, 11)), 2),  # the first one on ties
    ],
)
def test_the_weights_of_the_best_epoch_are_kept(
    inputs, monkeypatch, figures, selects_among, eval_every, measured, best
):
    given, states = iter(figures), []
    monkeypatch.setattr(FrozenTeacher, "accuracy", lambda self, network, start: next(given))
    run = distil(
        inputs,
        replace(PHASES[4], epochs=10, selects_among=selects_among),
        eval_every,
        lambda d: states.append({k: v.clone() for k, v in d.scion.state_dict().items()}),
    )
    assert list(run.curve.accuracies) == measured and run.curve.best_epoch == best
    same = [all(torch.equal(run.best[key], state[key]) for key in run.best) for state in states]
    assert [epoch for epoch, is_best in enumerate(same, start=1) if is_best] == [best]


@pytest.mark.parametrize(("poisoned", "found"), [(3, 3), (2, 3)])  # after the last step, no loss shows it any more
def test_what_is_not_finite_is_no_result(inputs, poisoned, found):
    def poison(d):
        if d.curve.epoch == poisoned:
            next(d.scion.parameters()).data.fill_(math.nan)

    with pytest.raises(NotFinite, match=f"not finite in B0, epoch {found}"):
        distil(inputs, PHASES[0], after=poison)
