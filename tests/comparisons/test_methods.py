"""What holds for every method: one budget, one student, exact resumption, results that are never mixed."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from small import pictures, run_in_pieces, short_recipe, small_cell, weights

from acceleration.feature_cache import CachedTeacher
from comparisons.methods import GRID, METHODS
from experiments import cell as cell_module
from experiments.setting import complete
from grafting.method import GRAFTING
from grafting.recipes import CIFAR10, RECIPES, Phase
from models import checkpoints
from utils.errors import BadInput

OTHERS = [name for name in METHODS if name != GRAFTING.name]
RECIPE = short_recipe((1, 1, 1), (1, 2))


@pytest.fixture
def make(teacher, dataset, tmp_path):
    """A function that makes a cell of a method; its files are in tmp_path / name."""
    images = pictures(6, seed=9)
    frozen = CachedTeacher(teacher, dataset.normalization, dataset.test(), [images], 10**9)

    def make(name, method, **changed):
        return small_cell(frozen, images, RECIPE, tmp_path / name, 2, method=METHODS[method], **changed)

    return make


def outcome(cell):
    """All numbers of a finished cell, and the weights in its files."""
    curves = {name: (curve.losses, curve.accuracies, curve.steps) for name, curve in cell.curves.items()}
    joined = cell.stage1_joined and cell.stage1_joined["accuracy"]
    return curves, joined, {kind: weights(cell.planned.students[kind]) for kind in cell.written}


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_cell_ends_with_the_same_bits(make, monkeypatch, method):
    """Interrupted after each of its epochs, with a checkpoint after every epoch."""
    undisturbed = make("undisturbed", method)
    undisturbed.run()
    monkeypatch.setattr(cell_module, "CHECKPOINT_SECONDS", -1.0)
    epochs = sum(curve.epoch for curve in undisturbed.curves.values())
    assert outcome(run_in_pieces(partial(make, "cut", method), epochs)) == outcome(undisturbed)


@pytest.mark.parametrize("method", OTHERS)
def test_the_method_is_part_of_the_setting(make, method):
    """Neither a result nor a checkpoint of another method is taken for this one's."""
    here, grafting = make("one", method), make("one", GRAFTING.name)
    assert here.setting.content["method"] == method
    for mine, other in ((here, grafting), (grafting, here)):
        with pytest.raises(BadInput, match=r"made with another method \(.*\); another --output_dir keeps both"):
            mine.setting.require_same(other.setting.content, here.planned.checkpoint)


def test_a_setting_without_a_method_is_graftings(make):
    saved = dict(make("one", GRAFTING.name).setting.content)
    assert saved.pop("method") == "grafting" and complete(saved)["method"] == "grafting"
    make("one", GRAFTING.name).setting.require_same(saved, make("one", GRAFTING.name).planned.checkpoint)
    with pytest.raises(BadInput, match="made with another method"):
        make("one", "whole").setting.require_same(saved, make("one", "whole").planned.checkpoint)


def test_the_phases_of_grafting_say_what_they_said_before_there_were_other_methods(make):
    for step in make("one", GRAFTING.name).setting.content["schedule"]:
        assert list(step) == ["phase", "span", "epochs", "lr_student", "lr_adapter", "batch"]


@pytest.mark.parametrize("recipe", RECIPES.values())
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].draws])
def test_every_method_has_the_epochs_of_grafting_and_chooses_among_as_many(method, recipe):
    phases = METHODS[method].phases(recipe)
    assert sum(phase.epochs for phase in phases) == sum(phase.epochs for phase in recipe.phases)
    assert [phase.selects_among for phase in phases] == [0] * (len(phases) - 1) + [recipe.stage2[-1].epochs]
    assert phases[-1].span == (3, 6)


@pytest.mark.parametrize("entries", GRID.values(), ids=GRID)
def test_what_was_chosen_is_on_the_grid(entries):
    assert len(set(entries)) == len(entries) and METHODS[entries[0].name] in entries


def test_every_number_of_a_method_is_in_the_setting(make):
    settings = [replace(make("one", "whole").setting, method=entry) for entries in GRID.values() for entry in entries]
    contents = [json.dumps(setting.content) for setting in settings]
    assert len(set(contents)) == len(contents)


def spans(method):
    return [(phase.name, phase.span, phase.epochs) for phase in METHODS[method].phases(CIFAR10)[3:]]


def test_other_joins_of_stage_2():
    assert spans("grafting") == [("L2", (3, 5), 100), ("L3", (3, 6), 100)]
    assert spans("grafting-straight") == [("L3", (3, 6), 200)]
    assert spans("grafting-back") == [("L2-back", (4, 6), 100), ("L3", (3, 6), 100)]


def trained(make, method):
    """The phases of a cell, with how many networks each trained, and which of the cell's networks these are."""
    cell, found = make(method, method), []
    before = cell.distill

    def recording(phase: Phase, network, *how):
        found.append((phase.name, [next(i for i, n in enumerate(cell.networks) if n is part) for part in network]))
        before(phase, network, *how)

    cell.distill = recording
    cell.run()
    return found


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("grafting", [("B0", [0]), ("B1", [1]), ("B2", [2]), ("L2", [0, 1]), ("L3", [0, 1, 2])]),
        ("grafting-straight", [("B0", [0]), ("B1", [1]), ("B2", [2]), ("L3", [0, 1, 2])]),
        ("grafting-back", [("B0", [0]), ("B1", [1]), ("B2", [2]), ("L2-back", [1, 2]), ("L3", [0, 1, 2])]),
        ("whole", [("whole", [0, 1, 2])]),
        ("kd", [("kd", [0, 1, 2])]),
        ("fitnets", [("hint 3", [0, 3]), ("hint 4", [0, 1, 4]), ("kd", [0, 1, 2])]),
    ],
)
def test_what_each_phase_trains(make, method, expected):
    assert trained(make, method) == expected


def test_the_whole_student_starts_as_graftings_scions_do(make):
    """So a difference between the two is not one of initialisation."""
    whole, grafting = make("a", "whole"), make("b", GRAFTING.name)
    for one, two in zip(whole.networks, grafting.networks, strict=True):
        assert all(torch.equal(one.state_dict()[key], value) for key, value in two.state_dict().items())


def test_stage_1_is_measured_joined(make, monkeypatch):
    """What is measured are the three scions in the file of stage 1, in sequence, from the input of block 3."""
    cell, measured = make("one", GRAFTING.name), []

    def accuracy(network, start):
        measured.append(({key: value.clone() for key, value in network.state_dict().items()}, start))
        return float(len(measured))

    monkeypatch.setattr(cell.teacher, "accuracy", accuracy)
    cell.run()
    state, start = measured[round(cell.stage1_joined["accuracy"]) - 1]
    blocks = checkpoints.read(cell.planned.students["stage 1"])[1]
    written = {f"{k}.{key}": value for k, block in enumerate(blocks) for key, value in block.items()}
    assert start == 3 and state.keys() == written.keys() and cell.stage1_joined["seconds"] > 0
    assert all(torch.equal(state[key], value) for key, value in written.items())


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("grafting")])
def test_only_grafting_has_a_stage_1(make, method):
    cell = make("one", method)
    cell.run()
    assert cell.stage1_joined is None and set(cell.written) == {"best", "last"}
