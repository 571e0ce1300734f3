"""What holds for every method: one budget, one student, exact resumption, results that are never mixed."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small import frozen_teacher, pictures, run_in_pieces, short_recipe, small_job, small_training, weights
from torch import nn

from acceleration.feature_cache import CachedTeacher
from comparisons.kd import Hint, Softened
from comparisons.methods import GRID, METHODS, ONE_SHOT
from data.views import Views
from deployment.evaluation import compare
from deployment.networks import whole
from experiments import training as training_module
from experiments.setting import phase_content, require_same
from grafting.distillation import Distillation
from grafting.inputs import Inputs
from grafting.recipes import CIFAR10, RECIPES
from grafting.stages import GRAFTING
from models import checkpoints
from models.architectures import student_of
from models.networks import vgg
from utils.errors import BadInput

IMAGES = pictures(6, seed=9)
PLAIN = ("kd", "fitnets", "fskd", "least-squares", "least-squares-images")  # their students have no adapters


@pytest.fixture
def make(teacher, dataset, tmp_path):
    """A function that makes a cell's training by a method; its files are in tmp_path / name."""
    frozen = CachedTeacher(teacher, vgg(teacher.architecture), dataset, [IMAGES], 10**9)

    def make(name, method, **options):
        flags = ["--method", method.partition("-")[0] if method.startswith("grafting") else method]
        flags += ["--optimize_span", method.partition("-")[2]] if method.startswith("grafting-") else []
        job = small_job(tmp_path / name, *flags, recipe=short_recipe((1, 1, 1), (1, 2)), network=teacher)
        return small_training(job, frozen, IMAGES, 2, **options)

    return make


def outcome(training):
    """All numbers of a finished cell, and the weights in its files."""
    curves = {name: (curve.losses, curve.accuracies, curve.steps) for name, curve in training.curves.items()}
    joined = training.stage1_joined and training.stage1_joined["accuracy"]
    return curves, joined, {kind: weights(training.cell.students[kind]) for kind in training.written}


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_cell_ends_with_the_same_bits(make, monkeypatch, method):
    """Interrupted after each of its epochs, with a checkpoint after every epoch. Only grafting has a stage 1."""
    undisturbed = make("undisturbed", method)
    undisturbed.run()
    monkeypatch.setattr(training_module, "CHECKPOINT_SECONDS", -1.0)
    epochs = sum(curve.epoch for curve in undisturbed.curves.values())
    assert outcome(run_in_pieces(partial(make, "cut", method), epochs)) == outcome(undisturbed)
    has_stage1 = method.startswith("grafting")
    kinds = {"best", "last"} if METHODS[method].has_student else set()
    assert set(undisturbed.written) == kinds | ({"stage 1"} if has_stage1 else set())
    assert (undisturbed.stage1_joined is not None) == has_stage1


@pytest.mark.parametrize("method", [name for name in METHODS if name != GRAFTING.name])
def test_the_method_is_part_of_the_setting(make, method):
    """Neither a result nor a checkpoint of another method is taken for this one's. Without one, it is grafting's."""
    here, grafting = make("one", method).cell, make("one", GRAFTING.name).cell
    without = {name: value for name, value in grafting.setting.items() if name != "method"}
    assert here.setting["method"] == method and grafting.setting["method"] == "grafting"
    require_same(grafting.setting, without, here.checkpoint)
    for mine, other in ((here, grafting.setting), (grafting, here.setting), (here, without)):
        with pytest.raises(BadInput, match=r"made with another method \(.*\); another --output_dir keeps both"):
            require_same(mine.setting, other, here.checkpoint)


def test_the_phases_of_grafting_say_what_they_said_before_there_were_other_methods(make):
    for step in make("one", GRAFTING.name).cell.setting["schedule"]:
        assert list(step) == ["phase", "span", "epochs", "lr_student", "lr_adapter", "batch"]


@pytest.mark.parametrize("recipe", RECIPES.values())
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].trains])
def test_every_method_has_the_epochs_of_grafting_and_chooses_among_as_many(method, recipe):
    for chosen in (recipe, replace(recipe, selects_among=7)):
        phases = METHODS[method].phases(chosen)
        assert sum(phase.epochs for phase in phases) == chosen.epochs
        among = [0] * (len(phases) - 1) + [chosen.selects_among or chosen.stage2[-1].epochs]
        assert [phase.selects_among for phase in phases] == among
        assert phases[-1].span == (3, 6)


@pytest.mark.parametrize("entries", GRID.values(), ids=GRID)
def test_what_was_chosen_is_on_the_grid_and_every_number_of_a_method_is_in_the_setting(entries):
    schedules = [json.dumps([phase_content(phase, 2) for phase in entry.phases(CIFAR10)]) for entry in entries]
    assert len(set(schedules)) == len(entries) and METHODS[entries[0].name] in entries


STAGE1 = [("B0", [0]), ("B1", [1]), ("B2", [2])]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("grafting", [*STAGE1, ("L2", [0, 1]), ("L3", [0, 1, 2])]),
        ("grafting-straight", [*STAGE1, ("L3", [0, 1, 2])]),
        ("grafting-back", [*STAGE1, ("L2-back", [1, 2]), ("L3", [0, 1, 2])]),
        ("whole", [("whole", [0, 1, 2])]),
        ("kd", [("kd", [0, 1, 2])]),
        ("fitnets", [("hint 3", [0, 3]), ("hint 4", [0, 1, 4]), ("kd", [0, 1, 2])]),
    ],
)
def test_what_each_phase_trains(make, monkeypatch, method, expected):
    """The phases of a cell, and which of the cell's networks each trains."""
    training, found = make(method, method), []

    def distill(phase, networks):
        trained = [next(i for i, n in enumerate(training.networks) if n is part) for part in networks]
        found.append((phase.name, trained))
        last = trained[-2] if phase.name.startswith("hint") else trained[-1]  # behind a hint is its regressor
        assert phase.span == (3 + trained[0], 4 + last)

    monkeypatch.setattr(training, "distill", distill)
    monkeypatch.setattr(training, "keep_stage1", lambda: None)
    training.method.train(training.cell.job.recipe, training)
    assert found == expected


def test_the_whole_student_starts_as_graftings_scions_do(make):
    """So a difference between the two is not one of initialisation."""
    scions_of_both = zip(make("a", "whole").networks, make("b", GRAFTING.name).networks, strict=True)
    for one, two in scions_of_both:
        assert all(torch.equal(one.state_dict()[key], value) for key, value in two.state_dict().items())


def test_stage_1_is_measured_joined(make, monkeypatch):
    """What is measured are the three scions in the file of stage 1, in sequence, from the input of block 3."""
    training, measured = make("one", GRAFTING.name), []

    def accuracy(network, start):
        measured.append(({key: value.clone() for key, value in network.state_dict().items()}, start))
        return float(len(measured))

    monkeypatch.setattr(training.teacher, "accuracy", accuracy)
    training.run()
    state, start = measured[round(training.stage1_joined["accuracy"]) - 1]
    blocks = checkpoints.read(training.cell.students["stage 1"])[1]
    written = {f"{k}.{key}": value for k, block in enumerate(blocks) for key, value in block.items()}
    assert start == 3 and state.keys() == written.keys() and training.stage1_joined["seconds"] > 0
    assert all(torch.equal(state[key], value) for key, value in written.items())


def test_hints_compare_the_outputs_of_the_block_and_kd_the_logits(make, monkeypatch):
    """The loss of each phase's first step, computed again by hand from the fresh networks. All train fast networks."""
    training, inputs = make("one", "fitnets"), Inputs(frozen_teacher(), IMAGES)
    image, view = torch.arange(6), torch.full((6,), Views(32).middle)
    features = [inputs.features(start, image, view) for start in range(7)]
    found, expected, accelerated = {}, {}, []
    inputs.fast_network = lambda network, start: accelerated.append(start) or network

    def first_step(phase, networks):
        outputs = nn.Sequential(*networks)(features[3])
        theirs = features[6] if phase.name == "kd" else features[phase.span[1]]
        expected[phase.name] = phase.loss(outputs, theirs).item()
        step = Distillation(phase, nn.Sequential(*networks), 2).step_on(inputs)
        found[phase.name] = step(image, view).item()

    monkeypatch.setattr(training, "distill", first_step)
    training.method.train(training.cell.job.recipe, training)
    assert list(found) == ["hint 3", "hint 4", "kd"] and found == pytest.approx(expected)
    assert accelerated == [3, 3, 3]


@pytest.mark.parametrize("method", PLAIN)
def test_a_students_file_holds_the_teachers_blocks_and_its_own_and_has_the_accuracy_of_the_cell(make, dataset, method):
    training = make("one", method)
    training.run()
    path, teacher = training.cell.students["last"], training.teacher
    kind, state = checkpoints.read(path)
    student = checkpoints.vgg_from_state(state, path, teacher.classes).eval()
    assert kind == "network" and student.architecture == student_of(teacher.network.architecture)
    with pytest.raises(BadInput, match="is a student without adapters, not a teacher: its classifier has no BatchNorm"):
        checkpoints.read_teacher(path, teacher.classes)
    images, own = torch.randn(4, 3, 32, 32), training.current.scion
    assert torch.equal(student(images), own(teacher.blocks[:3](images)))
    (figures,) = compare([whole(state, path, teacher.networks, dataset, teacher.device)], dataset)
    assert figures.name == "student without adapters"
    curve = training.current.curve
    assert figures.accuracy == curve.accuracies[curve.epoch]


def test_softened_probabilities_by_hand():
    """Logits (T ln 3, 0) are probabilities (3/4, 1/4) at temperature T; the student's are (1/2, 1/2)."""
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    for temperature in (1.0, 4.0):
        teacher = torch.tensor([[temperature * math.log(3), 0.0]] * 2)
        loss = Softened(temperature)(torch.zeros(2, 2), teacher)
        assert loss.item() == pytest.approx(2 * temperature**2 * divergence, rel=1e-5)  # two images


def test_softened_probabilities_do_not_see_a_shift_of_the_logits():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert Softened(2.0)(logits + 7, logits).item() == pytest.approx(0, abs=1e-5)


def test_a_hint_by_hand():
    student, teacher = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    assert Hint()(student, teacher).item() == 0.5 * 2 * 4 * 9


@pytest.mark.parametrize("method", ONE_SHOT)
def test_at_one_shot_a_method_has_the_numbers_that_were_chosen_there(tmp_path, method):
    job = small_job(tmp_path, "--method", method)
    assert job.method_at(1) == ONE_SHOT[method] and job.method_at(2) == METHODS[method]
    assert ONE_SHOT[method] in GRID[method]
