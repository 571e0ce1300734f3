import math
from dataclasses import replace

import pytest
import torch
from small import pictures
from torch import nn

from data.views import crop, pad
from grafting import distillation
from grafting.distillation import Curve, Distillation, NotFinite, distance, draw_views
from grafting.scions import graft, of_span, parameters_by_role, scions
from grafting.teacher import FrozenTeacher


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
def started(teacher, dataset, recipe):
    """A function that distils a phase of the recipe and returns (Distillation, the teacher, accuracies asked)."""

    def start(phase, eval_every=2, after=lambda d: None, scion=None):
        if scion is None:
            b = scions(teacher.architecture, teacher.classes, torch.Generator().manual_seed(0))
            scion = nn.Sequential(*b[phase.span[0] - 3 : phase.span[1] - 3])
        run = Distillation(phase, scion, 4)
        plain = FrozenTeacher(teacher, dataset.normalization, dataset.test())
        run.run(plain, plain.few_shot(pictures(12)), 5, eval_every, (0, 4, 0), after)
        return run

    return start


@pytest.mark.parametrize("index", range(5))
def test_two_epochs_are_those_of_a_loop_by_hand(started, teacher, dataset, recipe, index):
    """Every epoch's own order and views go into the graft; each role has an Adam of its own rate."""
    phase = replace(recipe.phases[index], epochs=2)
    scion = of_span(scions(teacher.architecture, teacher.classes, torch.Generator().manual_seed(0)), phase.span)
    images = torch.from_numpy(pictures(12))
    roles = zip(parameters_by_role(scion), phase.rates(4), strict=True)
    optimizers = [torch.optim.Adam(parameters, lr=rate) for parameters, rate in roles]
    for epoch in (1, 2):
        order, views = draw_views(len(images), 0, 4, 0, phase.name, epoch)
        for image, view in zip(order.split(5), views.split(5), strict=True):
            shown = dataset.normalization(crop(pad(images), image, view))
            loss = distance(graft(teacher, scion, phase.span, shown), teacher(shown))
            scion.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    run = started(phase)
    for ours, by_hand in zip(run.scion.parameters(), scion.parameters(), strict=True):
        assert torch.allclose(ours, by_hand, rtol=0, atol=1e-6 * by_hand.abs().max().item())


@pytest.mark.parametrize("index", range(5))
def test_only_the_scion_changes(started, teacher, recipe, index):
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    fresh = nn.Sequential(*scions(teacher.architecture, teacher.classes, torch.Generator().manual_seed(0)))
    phase = recipe.phases[index]
    run = started(phase)
    fresh = fresh[phase.span[0] - 3 : phase.span[1] - 3]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(run.scion.parameters(), fresh.parameters(), strict=True)]
    assert all(changed)


def test_the_optimizer_is_adam_with_two_constant_rates(started, recipe):
    rates = []
    run = started(recipe.stage1[1], after=lambda d: rates.append([g["lr"] for g in d.optimizer.param_groups]))
    assert type(run.optimizer) is torch.optim.Adam
    assert run.optimizer.defaults["betas"] == (0.9, 0.999) and run.optimizer.defaults["eps"] == 1e-8
    assert rates == [pytest.approx([1e-4, 1e-3])] * 2  # 2.5e-4 and 2.5e-3 at 4 shots of 10
    assert run.optimizer.param_groups[1]["params"][0].shape[2:] == (1, 1)


def test_an_epoch_has_every_image_in_batches_with_a_smaller_last_one(started, recipe, monkeypatch):
    sizes = []
    measured = distillation.distance
    monkeypatch.setattr(distillation, "distance", lambda s, t: sizes.append(len(s)) or measured(s, t))
    started(replace(recipe.stage1[0], epochs=2))
    assert sizes == [5, 5, 2, 5, 5, 2]


def test_accuracy_is_measured_when_asked_and_at_the_end(started, recipe):
    phase = replace(recipe.stage2[0], epochs=5)
    assert list(started(phase, eval_every=2).curve.accuracies) == [2, 4, 5]
    assert list(started(replace(phase, selects_among=5), eval_every=2).curve.accuracies) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("epochs", "measured"), [(3, [1, 2, 3]), (10, [2, 4, 6, 8, 10]), (12, [3, 6, 9, 12]), (16, [4, 8, 12, 16])]
)
def test_by_default_a_phase_is_measured_about_five_times(started, recipe, epochs, measured):
    assert list(started(replace(recipe.stage2[0], epochs=epochs), eval_every=None).curve.accuracies) == measured


@pytest.mark.parametrize(("eval_every", "measured"), [(None, [2, 4, 6, 8, 9, 10]), (3, [3, 6, 8, 9, 10])])
def test_only_the_last_epochs_may_be_best(started, recipe, monkeypatch, eval_every, measured):
    """Test accuracies fall from epoch to epoch, so the first of these is best."""
    figures = iter(range(99, 0, -1))
    monkeypatch.setattr(FrozenTeacher, "accuracy", lambda self, network, start: next(figures))
    states = []
    run = started(
        replace(recipe.stage2[1], epochs=10, selects_among=3),
        eval_every=eval_every,
        after=lambda d: states.append({k: v.clone() for k, v in d.scion.state_dict().items()}),
    )
    assert list(run.curve.accuracies) == measured and run.curve.best_epoch == 8
    assert all(torch.equal(run.best[key], states[7][key]) for key in run.best)


def test_steps_are_counted(started, recipe):
    assert started(replace(recipe.stage1[0], epochs=2)).curve.steps == 2 * 3  # batches of 5, 5 and 2 images


def test_the_first_of_equal_epochs_is_best():
    assert Curve([0.0] * 4, {1: 50.0, 2: 60.0, 3: 60.0, 4: 55.0}).best_epoch == 2


def test_best_weights_are_those_of_the_best_epoch(started, recipe, monkeypatch):
    figures = iter([50.0, 70.0, 70.0, 60.0])
    monkeypatch.setattr(FrozenTeacher, "accuracy", lambda self, network, start: next(figures))
    states = []
    run = started(
        recipe.stage2[1], after=lambda d: states.append({k: v.clone() for k, v in d.scion.state_dict().items()})
    )
    assert all(torch.equal(run.best[key], states[1][key]) for key in run.best)
    assert not all(torch.equal(run.best[key], states[2][key]) for key in run.best)


def test_a_weight_that_is_not_finite_after_the_last_step_is_no_result(started, recipe):
    """No loss is computed with it any more."""
    phase = recipe.stage1[0]

    def poison(d):
        if d.curve.epoch == phase.epochs:
            next(d.scion.parameters()).data.fill_(math.nan)

    with pytest.raises(NotFinite, match=f"not finite in B0, epoch {phase.epochs}"):
        started(phase, after=poison)


def test_a_loss_that_is_not_finite_stops_the_phase(started, recipe):
    def poison(d):
        if d.curve.epoch == 2:
            next(d.scion.parameters()).data.fill_(math.nan)

    with pytest.raises(NotFinite, match="not finite in B0, epoch 3"):
        started(recipe.stage1[0], after=poison)
