from dataclasses import replace

import pytest
import torch
from small import pictures, weights

from acceleration.feature_cache import CachedTeacher
from experiments import cell as cell_module
from experiments.cell import Cell, Setting
from grafting.teacher import FrozenTeacher
from models import checkpoints
from utils.errors import BadInput


@pytest.fixture
def make(teacher, dataset, recipe, tmp_path):
    """A function that makes a cell; its files lie in tmp_path / name."""

    def make(name, shots=2, trial=0, plain=False, watch=lambda phase, curve: None, **setting):
        images = pictures(shots * 3, seed=9)
        if plain:
            frozen = FrozenTeacher(teacher, dataset.normalization, dataset.test())
        else:
            frozen = CachedTeacher(teacher, dataset.normalization, dataset.test(), [images], 10**9)
        fields = {
            "seed": 0,
            "subset_seed": 6,
            "precision": "tf32",
            "teacher_sha256": "t",
            "subset_sha256": "s",
            "recipe": recipe,
        }
        folder = tmp_path / name
        students = {kind: folder / f"{kind}.pth" for kind in ("stage 1", "best", "last")}
        return Cell(
            Setting("Tiny", shots, trial, **(fields | setting)), frozen, frozen.few_shot(images), 2,
            folder / "cell.checkpoint.pt", students, watch,
        )  # fmt: skip

    return make


def outcome(cell):
    """All numbers of a finished cell, and the weights in its three files."""
    curves = {name: (curve.losses, curve.accuracies) for name, curve in cell.curves.items()}
    return curves, {kind: weights(path) for kind, path in cell.students.items()}


def test_the_same_cell_gives_the_same_bits(make):
    one, two = make("one"), make("two")
    one.run(), two.run()
    assert outcome(one) == outcome(two)


def test_seed_trial_and_shots_give_other_draws(make):
    losses = []
    for name, changed in enumerate(({}, {"trial": 1}, {"seed": 1}, {"shots": 3})):
        cell = make(str(name), **changed)
        cell.run()
        losses.append(tuple(cell.curves["B0"].losses))
    assert len(set(losses)) == 4


def test_other_cells_before_it_change_nothing(make):
    alone = make("alone", trial=1)
    alone.run()
    torch.manual_seed(123)
    make("before", trial=0).run()
    torch.rand(5)
    after = make("after", trial=1)
    after.run()
    assert outcome(after) == outcome(alone)


def test_cached_and_frozen_teacher_agree(make):
    stored, plain = make("stored"), make("plain", plain=True)
    stored.run(), plain.run()
    for phase, curve in plain.curves.items():
        assert stored.curves[phase].losses == pytest.approx(curve.losses, rel=1e-4)
        assert stored.curves[phase].accuracies == curve.accuracies


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize("epoch", range(1, 14))
def test_a_cut_cell_goes_on_to_the_same_bits(make, monkeypatch, epoch):
    """Cut after every one of the 13 epochs: two, none or one epoch after the last save."""
    undisturbed = make("undisturbed")
    undisturbed.run()
    monkeypatch.setattr(cell_module, "CHECKPOINT_SECONDS", -1.0)
    seen = []

    def cut(phase, curve):
        seen.append(phase)
        if len(seen) == epoch:
            raise PowerCut

    with pytest.raises(PowerCut):
        make("cut", watch=cut).run()
    again = make("cut")
    again.run()
    assert outcome(again) == outcome(undisturbed)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"subset_seed": 1}, "subset seed"),
        ({"precision": "bfloat16"}, "precision"),
        ({"teacher_sha256": "other"}, "teacher sha256"),
        ({"subset_sha256": "other"}, "subset sha256"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(make, changed, named):
    cell = make("one")
    cell.run()
    cell.checkpoint()
    with pytest.raises(BadInput, match=f"made with another {named} .*--fresh"):
        make("one", **changed).run()


def test_a_checkpoint_of_another_schedule_is_refused(make, recipe):
    cell = make("one")
    cell.run()
    cell.checkpoint()
    longer = replace(recipe, stage2=(replace(recipe.stage2[0], epochs=9), recipe.stage2[1]))
    with pytest.raises(BadInput, match="made with another schedule"):
        make("one", recipe=longer).run()


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_torn_checkpoint_is_refused(make, content):
    cell = make("one")
    cell.run()
    cell.checkpoint()
    cell.path.write_bytes(content if content is not None else cell.path.read_bytes()[:-200])
    with pytest.raises(BadInput, match="cell's checkpoint; remove it"):
        make("one").run()


def test_stage_1_keeps_its_last_weights_and_stage_2_goes_on_from_them(make):
    cell = make("one")
    starts = {}
    before = cell.distill

    def noting(phase, scion):
        starts[phase.name] = {k: v.clone() for k, v in scion.state_dict().items()}
        before(phase, scion)

    cell.distill = noting
    cell.run()
    b0, b1, b2 = checkpoints.read(cell.students["stage 1"])[1]
    joined = {f"{k}.{key}": value for k, state in enumerate((b0, b1)) for key, value in state.items()}
    assert all(torch.equal(starts["L2"][key], value) for key, value in joined.items())
    assert all(torch.equal(starts["L3"][f"2.{key}"], value) for key, value in b2.items())
    assert not torch.equal(starts["L3"]["0.0.0.weight"], starts["L2"]["0.0.0.weight"])


def test_best_and_last_are_two_files(make, teacher, dataset):
    cell = make("one")
    cell.run()
    curve = cell.curves["L3"]
    best, last = (checkpoints.read(cell.students[kind]) for kind in ("best", "last"))
    assert best[0] == last[0] == "stage 2"
    assert all(torch.equal(value, last[1][key]) for key, value in cell.current.scion.state_dict().items())
    assert (curve.best_epoch == curve.epoch) == all(torch.equal(best[1][key], last[1][key]) for key in best[1])
