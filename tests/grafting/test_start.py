"""Student blocks that begin with the teacher's weights."""

import pytest
import torch
from small import (
    frozen_teacher,
    pictures,
    resnet_teacher,
    run_in_pieces,
    short_recipe,
    small_job,
    small_training,
)
from torch import nn

from comparisons.methods import METHODS
from experiments.setting import phase_content, require_same
from experiments.training import CellTraining
from grafting import start
from grafting.inputs import Inputs
from grafting.least_squares import all_views, fitted
from grafting.scions import adapters_of, graft, scions
from grafting.start import begin_fitted, copy_blocks
from grafting.students import graft_of
from models.networks import vgg
from models.vgg import convolutions
from utils.errors import BadInput


def started(network, grafted=(3, 5), width=0.5, images=4):
    """A teacher, scions that begin from it, and the inputs."""
    teacher = frozen_teacher(network)
    teacher.networks = vgg(network.architecture).grafted_at(*grafted).at_width(width).started_from("teacher")
    inputs, made = Inputs(teacher, pictures(images)), scions(teacher, torch.Generator().manual_seed(0))
    begin_fitted(made, inputs)
    return teacher, nn.Sequential(*made).eval(), inputs


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("grafted", [(3, 5), (1, 5), (0, 5), (2, 4)])
@torch.no_grad()
def test_joined_scions_are_the_least_squares_student(teacher, grafted, width):
    frozen, made, inputs = started(teacher, grafted, width)
    images = torch.randn(20, 3, 32, 32)
    student = nn.Sequential(*frozen.blocks[: grafted[0]], *fitted(inputs, all_views(inputs))[0])
    if grafted[1] < 5:
        student = nn.Sequential(*student, *made[-1][2:], *frozen.blocks[grafted[1] + 1 :])
    expected = student(images)
    assert torch.allclose(graft_of(frozen, made)(images), expected, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_adapters_give_and_pick_the_channels_that_are_kept(teacher):
    _, made, inputs = started(teacher)
    (block3, s2t), (t2s, *_), _ = made
    kept = fitted(inputs, all_views(inputs))[1][0].channels
    features = torch.rand(2, 8, 4, 4)
    ours = block3(features)
    assert torch.allclose(s2t(ours)[:, kept], ours, atol=1e-6) and torch.allclose(t2s(s2t(ours)), ours, atol=1e-6)


@pytest.mark.parametrize("width", [0.5, 1.0])
@torch.no_grad()
def test_each_scion_is_its_block_where_nothing_is_lost(teacher, width):
    """At the full width, and at half of it where each filter is there twice; on the images that were solved for."""
    for layer in convolutions(nn.Sequential(*teacher.features[3:])):
        half = layer.out_channels // 2
        if width == 0.5:
            layer.weight[half:], layer.bias[half:] = 2 * layer.weight[:half], 2 * layer.bias[:half]
    frozen, made, inputs = started(teacher, width=width)
    images = frozen.normalization(frozen.views.crop(inputs.padded, torch.arange(4), torch.arange(4)))
    expected = frozen.network(images)
    for index, scion in enumerate(made):
        logits = graft(frozen.blocks, scion, (3 + index, 4 + index), images)
        assert torch.allclose(logits, expected, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("method", ["grafting", "whole", "kd", "fitnets"])
def test_the_last_phase_shows_many_views(tmp_path, teacher, monkeypatch, method):
    """Only where blocks begin fitted: neither as published nor with a ResNet, whose blocks are copies."""
    monkeypatch.setattr("experiments.job.LEAST_VIEWS", start.LEAST_VIEWS)

    def least(*flags, **known):
        job = small_job(tmp_path, *flags, recipe=short_recipe(), **known)
        phases = METHODS[method].phases(job.recipe)
        return [phase_content(phase, 1).get("least_views") for phase in phases]

    *others, last = least("--start", "teacher", network=teacher)
    assert not any(others) and last == 100_000
    assert not any(least(network=teacher))
    flags = ("--networks", "resnet18-resnet10", "--image_size", "32", "--start", "teacher")
    assert not any(least(*flags, network=resnet_teacher("resnet18-resnet10").network))


@pytest.mark.parametrize("method", ["grafting", "whole", "kd", "fitnets"])
def test_every_method_that_trains_can_begin_from_the_teacher(teacher, tmp_path, method):
    flags = ("--method", method, "--start", "teacher", "--student_width", "0.25", "--nshot", "1")
    job = small_job(tmp_path, *flags, network=teacher)
    frozen = frozen_teacher(teacher)
    frozen.networks = job.networks
    training = small_training(job, frozen, pictures(3), 1)
    training.run()
    assert training.current.curve.epoch
    assert all("width0.25" in path for path in training.written.values())


def test_a_cell_that_began_from_the_teacher_goes_on_exactly(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.training.CHECKPOINT_SECONDS", -1.0)
    recipe, images = short_recipe(), pictures(3)

    def make(folder, after_epoch=lambda *_: None):
        job = small_job(folder, "--start", "teacher", network=teacher, recipe=recipe)
        frozen = frozen_teacher(teacher)
        frozen.networks = job.networks
        return small_training(job, frozen, images, 1, after_epoch=after_epoch)

    at_once = make(tmp_path / "one")
    at_once.run()
    epochs = sum(curve.epoch for curve in at_once.curves.values())
    (tmp_path / "two" / "results" / "1-shot").mkdir(parents=True)
    pieces = run_in_pieces(lambda after_epoch: make(tmp_path / "two", after_epoch), epochs)
    assert [c.losses for c in pieces.curves.values()] == [c.losses for c in at_once.curves.values()]


@pytest.mark.parametrize("method", ["grafting", "kd"])
def test_student_blocks_begin_with_the_teachers_residual_blocks(method):
    teacher = resnet_teacher("resnet18-resnet10")
    teacher.networks = teacher.networks.started_from("teacher")
    made = METHODS[method].fresh(teacher, torch.Generator())
    copy_blocks(made, teacher)
    for scion, stage in zip(made, teacher.blocks[1:5], strict=True):
        ours, theirs = scion[0].state_dict(), stage[:1].state_dict()
        assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert teacher.networks.name == "resnet18-resnet10-from-teacher"


def test_blocks_of_other_shapes_have_no_such_start():
    teacher = resnet_teacher("resnet50-resnet18")
    teacher.networks = teacher.networks.started_from("teacher")
    with pytest.raises(BadInput, match="--start teacher: the residual blocks of teacher and student differ in shape"):
        copy_blocks(scions(teacher, torch.Generator()), teacher)


def test_widths_and_starts_that_cannot_be(tmp_path):
    with pytest.raises(BadInput, match=r"--student_width 0\.1: leaves a block without channels; give more"):
        small_job(tmp_path, "--student_width", "0.1").networks  # noqa: B018
    with pytest.raises(BadInput, match="--start teacher: not with --method fskd, which trains nothing"):
        small_job(tmp_path, "--start", "teacher", "--method", "fskd")
    with pytest.raises(BadInput, match="--student_width: not with --method nearest-class-mean, which has no student"):
        small_job(tmp_path, "--student_width", "0.25", "--method", "nearest-class-mean")
    with pytest.raises(BadInput, match="--method kd: has no adapters, so block 5 must be among --grafted"):
        small_job(tmp_path, "--method", "kd", "--grafted", "3-4")
    with pytest.raises(BadInput, match="--student_width: is for VGGs; the student of resnet34-resnet18 has its own"):
        small_job(tmp_path, "--networks", "resnet34-resnet18", "--student_width", "0.25")


@pytest.mark.parametrize("field", ["choice_of_filters", "augmentation"])
def test_a_start_of_an_older_version_is_not_mixed_with_this_one(tmp_path, teacher, field):
    """Older ones kept the filters of largest L1 norm and showed no mixed views, and their settings did not say so."""
    job = small_job(tmp_path, "--start", "teacher", network=teacher)
    setting = small_training(job, frozen_teacher(teacher), pictures(3), 1).cell.setting
    older = {name: value for name, value in setting.items() if name != field}
    with pytest.raises(BadInput, match=f"made with another {field.replace('_', ' ')}"):
        require_same(setting, older, tmp_path)


def test_adapters_stay_where_the_widths_differ(teacher):
    _, made, _ = started(teacher, (1, 5), 0.25)
    assert [len(adapters_of(scion)) for scion in made] == [1, 2, 2, 2, 1]


@pytest.mark.parametrize("method", ["grafting", "fitnets"])
def test_trials_on_the_same_images_share_what_is_solved(teacher, tmp_path, monkeypatch, method):
    """The second trial solves nothing, and is what it is alone; other images are solved again."""
    solves = []
    monkeypatch.setattr("experiments.training.begin_fitted", lambda *args: (solves.append(1), begin_fitted(*args)))

    def run(job, images, shots, trial):
        frozen = frozen_teacher(teacher)
        frozen.networks = job.networks
        cell = small_training(job, frozen, images, shots, trial)
        cell.run()
        return cell

    flags = ("--method", method, "--start", "teacher", "--nshot", "1", "2")
    together, alone = (small_job(tmp_path / name, *flags, network=teacher) for name in ("together", "alone"))
    run(together, pictures(3), 1, 0)
    second, expected = (run(job, pictures(3), 1, 1) for job in (together, alone))
    assert len(solves) == 2  # one of each job
    assert [c.losses for c in second.curves.values()] == [c.losses for c in expected.curves.values()]
    run(together, pictures(6), 2, 0)
    assert len(solves) == 3
    other = small_job(tmp_path / "other", "--start", "teacher", "--method", "kd", "--nshot", "1", network=teacher)
    together.method, together.one_shot_method = other.method, other.one_shot_method  # as benchmarks.methods does
    run(together, pictures(6), 2, 0)
    assert len(solves) == 4


def test_residual_blocks_of_other_shapes_are_refused_before_any_feature_is_computed(tmp_path, monkeypatch):
    teacher = resnet_teacher("resnet50-resnet18")
    teacher.networks = teacher.networks.started_from("teacher")
    flags = ("--networks", "resnet50-resnet18", "--image_size", "32", "--start", "teacher", "--nshot", "1")
    training = small_training(small_job(tmp_path, *flags, network=teacher.network), teacher, pictures(3), 1)
    monkeypatch.setattr(CellTraining, "inputs", property(lambda _: pytest.fail("features were computed")))
    with pytest.raises(BadInput, match="--start teacher: the residual blocks of teacher and student differ in shape"):
        training.run()
