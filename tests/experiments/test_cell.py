import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small import PowerCut, pictures, run_in_pieces, short_recipe, small_cell, weights

from acceleration import winograd
from acceleration.feature_cache import CachedTeacher
from experiments import cell as cell_module
from experiments import students
from grafting import distillation
from grafting.teacher import FrozenTeacher
from models import checkpoints
from utils import files
from utils.errors import BadInput


@pytest.fixture
def make(teacher, dataset, recipe, tmp_path):
    """A function that makes a cell; its files are in tmp_path / name. with_features_of: another cell."""

    def make(name, shots=2, trial=0, plain=False, with_features_of=None, **changed):
        images = pictures(changed.pop("images", shots * 3), seed=9)
        if with_features_of:
            frozen = with_features_of.teacher
        elif plain:
            frozen = FrozenTeacher(teacher, dataset.normalization, dataset.test())
        else:
            frozen = CachedTeacher(teacher, dataset.normalization, dataset.test(), [images], 10**9)
        return small_cell(frozen, images, changed.pop("recipe", recipe), tmp_path / name, shots, trial, **changed)

    return make


def outcome(cell):
    """All numbers of a finished cell, and the weights in its three files."""
    curves = {name: (curve.losses, curve.accuracies) for name, curve in cell.curves.items()}
    return curves, {kind: weights(path) for kind, path in cell.planned.students.items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_cell_gives_the_same_bits(make, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        one, two = (make(name, recipe=short_recipe((1, 1, 1), (1, 2))) for name in ("one", "two"))
        one.run(), two.run()
    finally:
        torch.set_num_threads(before)
    assert outcome(one) == outcome(two)


def test_seed_trial_and_shots_give_other_draws(make):
    losses = []
    for name, changed in enumerate(({}, {"trial": 1}, {"seed": 1}, {"shots": 3})):
        cell = make(str(name), **changed)
        cell.run()
        losses.append(tuple(cell.curves["B0"].losses))
    assert len(set(losses)) == 4


@pytest.mark.parametrize("changed", [{"trial": 1}, {"seed": 1}])
def test_every_epoch_of_every_cell_has_its_own_order_and_views(make, monkeypatch, changed):
    """Not only other initial weights."""
    drawn, draw = [], distillation.draw_views
    monkeypatch.setattr(distillation, "draw_views", lambda *purpose: drawn.append(draw(*purpose)) or drawn[-1])
    make("one").run(), make("two", **changed).run()
    orders, views = ([tuple(draws.tolist()) for draws in kind] for kind in zip(*drawn, strict=True))
    assert len(set(views)) == len(views) == 2 * 13
    assert all(one != two for one, two in zip(orders[:13], orders[13:], strict=True))


def test_other_cells_before_it_change_nothing(make):
    alone = make("alone", trial=1)
    alone.run()
    torch.manual_seed(123)
    make("before", trial=0).run()
    torch.rand(5)
    after = make("after", trial=1)
    after.run()
    assert outcome(after) == outcome(alone)


@pytest.fixture(params=[6, 15], ids=["neighbours", "winograd"])
def images(request, monkeypatch):
    """How many: one batch below WINOGRAD_FROM, or one of 12 from it on and a last one of 3 below it."""
    if request.param == 15:
        monkeypatch.setattr(winograd, "WINOGRAD_FROM", 4)
    return request.param


@pytest.fixture
def trained_by(monkeypatch):
    """The sizes of the batches that pass a convolution in training, by the way it is computed."""
    sizes = {"winograd": set(), "neighbours": set()}
    forward, over_neighbours = winograd.Convolution.forward, winograd.Convolution.over_neighbours
    transformed = winograd.Convolution.transformed
    under_way = []

    def recording(self, rows):
        under_way.append(rows.shape[1])
        outputs = forward(self, rows)
        under_way.pop()
        return outputs

    def transforming(self, weight):
        sizes["winograd"].update(under_way)  # kernels that are not trained are transformed before
        return transformed(self, weight)

    def gathering(self, rows):
        sizes["neighbours"].update(under_way)
        return over_neighbours(self, rows)

    monkeypatch.setattr(winograd.Convolution, "forward", recording)
    monkeypatch.setattr(winograd.Convolution, "transformed", transforming)
    monkeypatch.setattr(winograd.Convolution, "over_neighbours", gathering)
    return sizes


def test_cached_and_frozen_teacher_agree(make, images, trained_by):
    cached, plain = make("cached", images=images), make("plain", plain=True, images=images)
    cached.run(), plain.run()
    expected = {6: {"winograd": set(), "neighbours": {6}}, 15: {"winograd": {12}, "neighbours": {3}}}
    assert trained_by == expected[images]
    for phase, curve in plain.curves.items():
        assert cached.curves[phase].losses == pytest.approx(curve.losses, rel=1e-4)
        assert cached.curves[phase].accuracies == curve.accuracies


def test_an_interrupted_cell_ends_with_the_same_bits(make, images, monkeypatch):
    """Interrupted after each of the 13 epochs, with a checkpoint after every epoch."""
    undisturbed = make("undisturbed", images=images)
    undisturbed.run()
    monkeypatch.setattr(cell_module, "CHECKPOINT_SECONDS", -1.0)
    again = make("again", images=images)  # the same features, computed again; once for all pieces
    last = run_in_pieces(partial(make, "cut", images=images, with_features_of=again), 13)
    assert len(last.earlier_processes) == 12 and outcome(last) == outcome(undisturbed)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"subset_seed": 1}, "subset seed"),
        ({"precision": "bfloat16"}, "precision"),
        ({"teacher_sha256": "other"}, "teacher sha256"),
        ({"subset_sha256": "other"}, "subset sha256"),
        ({"test_sha256": "other"}, "test sha256"),
        ({"normalization": {"mean": [0.0], "std": [1.0]}}, "normalization"),
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


@pytest.mark.parametrize("content", [b"", b"incomplete", None])
def test_an_incomplete_checkpoint_is_refused(make, content):
    cell = make("one")
    cell.run()
    cell.checkpoint()
    cell.planned.checkpoint.write_bytes(content if content is not None else cell.planned.checkpoint.read_bytes()[:-200])
    with pytest.raises(BadInput, match=r"cell's checkpoint, or damaged .*; remove it"):
        make("one").run()


def with_checkpoint(make, monkeypatch, change):
    """A cell cut in L3, after `change` has been made to its checkpoint."""
    monkeypatch.setattr(cell_module, "CHECKPOINT_SECONDS", -1.0)

    def cut(phase, curve):
        if phase == "L3" and curve.epoch == 3:
            raise PowerCut

    cell = make("cut", after_epoch=cut)
    with pytest.raises(PowerCut):
        cell.run()
    saved = torch.load(cell.planned.checkpoint, weights_only=True)
    change(saved)
    torch.save(saved, cell.planned.checkpoint)
    return make("cut")


def drop_a_parameter(saved):
    del saved["optimizer"]["state"][0]


def reshape_a_moment(saved):
    saved["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)


def take_the_optimizer_for_a_list(saved):
    saved["optimizer"] = [1, 2]


def rename_a_best_weight(saved):
    saved["best"]["other"] = saved["best"].popitem()[1]


def take_a_scion_away(saved):
    saved["scions"].pop()


def name_no_phase(saved):
    saved["phase"] = "L9"


@pytest.mark.parametrize(
    "change",
    [
        drop_a_parameter,
        reshape_a_moment,
        take_the_optimizer_for_a_list,
        rename_a_best_weight,
        take_a_scion_away,
        name_no_phase,
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(make, monkeypatch, change):
    with pytest.raises(BadInput, match=r"cell's checkpoint, or damaged .*; remove it") as refusal:
        with_checkpoint(make, monkeypatch, change).run()
    assert "\n" not in str(refusal.value)


def test_learning_rates_are_the_settings_whatever_a_checkpoint_says(make, monkeypatch):
    undisturbed = make("undisturbed")
    undisturbed.run()

    def speed_up(saved):
        for group in saved["optimizer"]["param_groups"]:
            group["lr"] = 1.0

    again = with_checkpoint(make, monkeypatch, speed_up)
    again.run()
    assert outcome(again) == outcome(undisturbed)


def test_a_resumed_cell_knows_its_earlier_processes_and_where_they_wrote(make, monkeypatch, tmp_path):
    again = with_checkpoint(make, monkeypatch, lambda saved: None)
    first_file = again.planned.students["stage 1"]
    again.process = {"command": "two"}
    elsewhere = {kind: tmp_path / "elsewhere" / path.name for kind, path in again.planned.students.items()}
    again.planned = replace(again.planned, students=elsewhere)
    again.run()
    assert again.earlier_processes == [{"command": "one"}]
    assert again.written == {
        "stage 1": str(first_file),
        "best": str(tmp_path / "elsewhere/best.pth"),
        "last": str(tmp_path / "elsewhere/last.pth"),
    }
    assert all(Path(path).exists() for path in again.written.values())


def test_every_student_has_a_record(make):
    cell = make("one")
    cell.run()
    for kind, path in cell.planned.students.items():
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["student"] == kind and record["class_names"] == ["a", "b", "c"]
        assert record["sha256"] == files.sha256_of_file(path)
        assert record["setting"] == json.loads(json.dumps(cell.setting.content))


def test_stage_1_writes_its_last_weights_and_stage_2_starts_from_them(make):
    cell = make("one")
    starts = {}
    before = cell.distill

    def recording(phase, scion):
        starts[phase.name] = {k: v.clone() for k, v in scion.state_dict().items()}
        before(phase, scion)

    cell.distill = recording
    cell.run()
    b0, b1, b2 = checkpoints.read(cell.planned.students["stage 1"])[1]
    joined = {f"{k}.{key}": value for k, state in enumerate((b0, b1)) for key, value in state.items()}
    assert all(torch.equal(starts["L2"][key], value) for key, value in joined.items())
    assert all(torch.equal(starts["L3"][f"2.{key}"], value) for key, value in b2.items())
    assert not torch.equal(starts["L3"]["0.0.0.weight"], starts["L2"]["0.0.0.weight"])


def test_best_and_last_are_two_files(make, teacher, dataset):
    cell = make("one")
    cell.run()
    curve = cell.curves["L3"]
    best, last = (checkpoints.read(cell.planned.students[kind]) for kind in ("best", "last"))
    assert best[0] == last[0] == "stage 2"
    assert all(torch.equal(value, last[1][key]) for key, value in cell.current.scion.state_dict().items())
    assert (curve.best_epoch == curve.epoch) == all(torch.equal(best[1][key], last[1][key]) for key in best[1])


def test_a_student_written_just_before_a_power_cut_is_this_cells(make, monkeypatch):
    """Its record is written before it, so that the cell may write it again."""

    def power_cut(*_):
        raise PowerCut

    monkeypatch.setattr(checkpoints, "write_stage1", lambda scions, path: path.write_bytes(b"weights"))
    monkeypatch.setattr("models.records.write", power_cut)
    cell = make("one")
    with pytest.raises(PowerCut):
        cell.run()
    content = json.loads(json.dumps(cell.setting.content))
    students.require_free([cell.planned.students["stage 1"]], content, "result.json", fresh=False)
    with pytest.raises(BadInput, match="is a student of another run"):
        students.require_free([cell.planned.students["stage 1"]], {**content, "seed": 1}, "result.json", fresh=False)
