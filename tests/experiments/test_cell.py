import json
from functools import partial
from pathlib import Path

import pytest
import small
import torch
from small import PowerCut, frozen_teacher, pictures, run_in_pieces, short_recipe, weights

from acceleration import winograd
from acceleration.feature_cache import CachedTeacher
from experiments import results, training
from experiments.training import CellTraining
from grafting import distillation
from models import checkpoints
from utils import files
from utils.errors import BadInput

TEACHER = small.small_teacher()


def training_in(folder, *flags, shots=2, trial=0, images=None, recipe=None, teacher=None, after_epoch=lambda *_: None):
    """The training of one cell, whose files are in the folder. images: how many. teacher: another training's."""
    images = pictures(images or shots * 3, seed=9)
    job = small.small_job(folder, "--eval_every", "2", *flags, recipe=recipe, network=TEACHER)
    teacher = teacher or CachedTeacher(job.network, job.networks, job.dataset, [images], 10**9)
    return small.small_training(job, teacher, images, shots, trial, after_epoch)


@pytest.fixture
def run(tmp_path):
    """A function that makes the training of one cell and runs it."""

    def run(name, *flags, **changed):
        made = training_in(tmp_path / name, *flags, **changed)
        made.run()
        return made

    return run


def outcome(cell):
    """All numbers of a finished training, and the weights in its three files."""
    curves = {name: (curve.losses, curve.accuracies) for name, curve in cell.curves.items()}
    return curves, {kind: weights(Path(path)) for kind, path in cell.written.items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_cell_gives_the_same_bits_whatever_ran_before(run, threads):
    before, recipe = torch.get_num_threads(), short_recipe((1, 1), (1, 2))
    torch.set_num_threads(threads)
    try:
        alone = run("alone", recipe=recipe)
        torch.manual_seed(123)
        run("before", trial=1, recipe=recipe)
        torch.rand(5)
        after = run("after", recipe=recipe)
    finally:
        torch.set_num_threads(before)
    assert outcome(after) == outcome(alone)


def test_every_epoch_of_every_cell_has_its_own_draws(run, monkeypatch):
    """Other initial weights, and in each of the 13 epochs another order and other views."""
    drawn, draw = [], distillation.draw_views
    monkeypatch.setattr(distillation, "draw_views", lambda *key: drawn.append(draw(*key)) or drawn[-1])
    cells = run("one"), run("trial", trial=1), run("seed", "--seed", "1")
    assert len({tuple(cell.curves["B0"].losses) for cell in (*cells, run("shots", shots=3))}) == 4
    orders, views = ([tuple(draws.tolist()) for draws in kind] for kind in zip(*drawn[:39], strict=True))
    assert len(set(views)) == 3 * 13
    assert all(len(set(same_epoch)) > 1 for same_epoch in zip(orders[:13], orders[13:26], orders[26:], strict=True))


@pytest.fixture(params=[6, 15], ids=["neighbours", "winograd"])
def images(request, monkeypatch):
    """How many: one batch below WINOGRAD_FROM, or one of 12 from it on and a last one of 3 below it."""
    if request.param == 15:
        monkeypatch.setattr(winograd, "WINOGRAD_FROM", 4)
    return request.param


def test_cached_and_frozen_teacher_agree(run, images):
    cached, plain = run("cached", images=images), run("plain", images=images, teacher=frozen_teacher())
    for phase, curve in plain.curves.items():
        assert cached.curves[phase].losses == pytest.approx(curve.losses, rel=1e-4)
        assert cached.curves[phase].accuracies == curve.accuracies


def test_an_interrupted_cell_ends_with_the_same_bits(tmp_path, run, images, monkeypatch):
    """Interrupted after each of the 13 epochs, with a checkpoint after every epoch."""
    undisturbed = run("undisturbed", images=images)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    again = training_in(tmp_path / "again", images=images)  # the same features, computed again; once for all pieces
    last = run_in_pieces(partial(training_in, tmp_path / "cut", images=images, teacher=again.teacher), 13)
    assert len(last.earlier_processes) == 12 and outcome(last) == outcome(undisturbed)


@pytest.fixture(scope="module")
def cut_in_l3(tmp_path_factory):
    """A training that was cut in L3."""

    def power_cut(phase, curve):
        if phase == "L3" and curve.epoch == 3:
            raise PowerCut

    made = training_in(tmp_path_factory.mktemp("cut"), after_epoch=power_cut)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        made.run()
    return made


@pytest.fixture
def cut(cut_in_l3, tmp_path):
    """A function that makes that cell's training again, with its checkpoint, which it changes."""

    def cut(change=lambda saved: None):
        again = training_in(tmp_path / "again", teacher=cut_in_l3.teacher)
        saved = torch.load(cut_in_l3.cell.checkpoint, weights_only=True)
        change(saved)
        files.write_tensors(again.cell.checkpoint, saved)
        return again

    return cut


def test_seconds_go_on_where_they_stopped(cut):
    again = cut(lambda saved: saved.update(seconds='{"features": 90.0, "start": 80.0, "saving": 70.0}'))
    again.run()
    assert again.seconds["features"] >= 90 and again.seconds["start"] == 80 and again.seconds["saving"] >= 70


@pytest.mark.parametrize(
    "field", ["seed", "subset_seed", "precision", "teacher_sha256", "subset_sha256", "test_sha256", "normalization"]
)
def test_a_checkpoint_of_other_settings_is_refused(cut, field):
    again = cut()
    again.cell.setting[field] = "another"
    with pytest.raises(BadInput, match=f"made with another {field.replace('_', ' ')} .*--fresh"):
        again.run()


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.pop("optimizer"),
        lambda saved: saved.pop("best"),
        lambda saved: saved["scions"].pop(),
        lambda saved: saved.update(phase="L9"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(cut, change):
    with pytest.raises(BadInput, match=r"cell's checkpoint, or damaged .*; remove it") as refusal:
        cut(change).run()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("end", [0, 10, -200])
def test_an_incomplete_checkpoint_is_refused(cut, end):
    again = cut()
    again.cell.checkpoint.write_bytes(again.cell.checkpoint.read_bytes()[:end])
    with pytest.raises(BadInput, match=r"cell's checkpoint, or damaged .*; remove it"):
        again.run()


def as_written_before(saved):
    """An earlier version: neither steps of the optimiser, nor stage 1 joined, nor the method in the setting."""
    del saved["stage1_joined"]
    curves, setting = json.loads(saved["curves"]), json.loads(saved["setting"])
    for curve in curves.values():
        del curve["steps"], curve["best_from"]
    del setting["method"]
    saved |= {"curves": json.dumps(curves), "setting": json.dumps(setting)}


def with_other_learning_rates(saved):
    """Those of the setting count, whatever a checkpoint says."""
    for group in saved["optimizer"]["param_groups"]:
        group["lr"] = 1.0


@pytest.mark.parametrize("change", [as_written_before, with_other_learning_rates])
def test_a_checkpoint_is_continued_with_the_same_bits(cut, run, change):
    again = cut(change)
    again.run()
    assert outcome(again) == outcome(run("undisturbed"))


def test_a_resumed_cell_knows_its_earlier_processes_and_where_they_wrote(cut, cut_in_l3):
    again = cut()
    again.process = {"command": "two"}
    again.run()
    assert [process["command"] for process in again.earlier_processes] == ["one"]
    before, now = cut_in_l3.cell.students, again.cell.students
    assert again.written == {kind: str(of[kind]) for kind, of in (("stage 1", before), ("best", now), ("last", now))}
    assert all(Path(path).exists() for path in again.written.values())


def test_best_and_last_are_two_files_and_every_student_has_a_record(run):
    done = run("one")
    curve, cell = done.curves["L3"], done.cell
    best, last = (checkpoints.read(cell.students[kind]) for kind in ("best", "last"))
    assert best[0] == last[0] == "stage 2"
    assert all(torch.equal(value, last[1][key]) for key, value in done.current.scion.state_dict().items())
    assert (curve.best_epoch == curve.epoch) == all(torch.equal(best[1][key], last[1][key]) for key in best[1])
    for kind, path in cell.students.items():
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["student"] == kind and record["class_names"] == ["a", "b", "c"]
        assert record["sha256"] == files.sha256_of_file(path)
        assert record["setting"] == json.loads(json.dumps(cell.setting))


def test_stage_1_writes_its_last_weights_and_stage_2_starts_from_them(run, monkeypatch):
    starts, distill = {}, CellTraining.distill

    def recording(self, phase, scions):
        states = enumerate(scion.state_dict() for scion in scions)
        starts[phase.name] = {f"{k}.{key}": v.clone() for k, state in states for key, v in state.items()}
        distill(self, phase, scions)

    monkeypatch.setattr(CellTraining, "distill", recording)
    cell = run("one").cell
    b0, b1, b2 = checkpoints.read(cell.students["stage 1"])[1]
    joined = {f"{k}.{key}": value for k, state in enumerate((b0, b1)) for key, value in state.items()}
    assert starts["L2"].keys() == joined.keys()
    assert all(torch.equal(starts["L2"][key], value) for key, value in joined.items())
    assert all(torch.equal(starts["L3"][f"2.{key}"], value) for key, value in b2.items())
    assert not torch.equal(starts["L3"]["0.0.0.weight"], starts["L2"]["0.0.0.weight"])


def test_a_student_written_just_before_a_power_cut_is_this_cells(tmp_path, monkeypatch):
    """Its record is written before it, so that the cell may write it again."""

    def power_cut(*_):
        raise PowerCut

    monkeypatch.setattr(checkpoints, "write_stage1", lambda scions, path: path.write_bytes(b"weights"))
    monkeypatch.setattr("models.records.write", power_cut)
    made = training_in(tmp_path)
    with pytest.raises(PowerCut):
        made.run()
    student, setting = made.cell.students["stage 1"], json.loads(json.dumps(made.cell.setting))
    results.require_free_students([student], setting, "result.json", fresh=False)
    with pytest.raises(BadInput, match="is a student of another run"):
        results.require_free_students([student], {**setting, "seed": 1}, "result.json", fresh=False)
