"""The numbers of docs/method.md, sections 4 to 6 and 8, spelled out again by hand."""

from dataclasses import replace

import pytest

from comparisons.methods import METHODS
from grafting.recipes import CIFAR10, CIFAR100, RECIPES, batch_size


@pytest.mark.parametrize(
    ("recipe", "numbers"),
    [
        (
            CIFAR10,
            [
                ("B0", (3, 4), 100, 2.5e-4, 2.5e-3),
                ("B1", (4, 5), 60, 2.5e-4, 2.5e-3),
                ("B2", (5, 6), 60, 2.5e-4, 2.5e-3),
                ("L2", (3, 5), 100, 1e-4, 1e-4),
                ("L3", (3, 6), 100, 1e-4, 1e-4),
            ],
        ),
        (
            CIFAR100,
            [
                ("B0", (3, 4), 1000, 2.5e-4, 1e-3),
                ("B1", (4, 5), 200, 1e-3, 1e-3),
                ("B2", (5, 6), 200, 1e-3, 1e-3),
                ("L2", (3, 5), 150, 1e-4, 1e-4),
                ("L3", (3, 6), 150, 1e-4, 1e-4),
            ],
        ),
    ],
)
def test_schedules(recipe, numbers):
    assert [(p.name, p.span, p.epochs, p.lr_student, p.lr_adapter) for p in recipe.phases] == numbers


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_stage_1_scales_with_shots_and_only_l3_selects_its_best_epoch(recipe):
    for phase in recipe.stage1:
        assert phase.learning_rates(1) == pytest.approx((phase.lr_student / 10, phase.lr_adapter / 10))
        assert phase.learning_rates(50) == pytest.approx((phase.lr_student * 5, phase.lr_adapter * 5))
    for phase in recipe.stage2:
        assert phase.learning_rates(1) == phase.learning_rates(50) == (phase.lr_student, phase.lr_adapter)
    assert [phase.selects_among for phase in recipe.phases] == [0, 0, 0, 0, recipe.stage2[1].epochs]


def test_batch_sizes_and_steps():
    shots = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50)
    assert [batch_size(n) for n in shots] == [6, 12, 19, 25, 32, 38, 44, 51, 57, 64, 128, 320]
    steps = {classes: [-(-n * classes // batch_size(n)) for n in shots] for classes in (10, 100)}
    assert steps[10] == [2] * 12
    assert steps[100] == [17, 17] + [16] * 10
    assert CIFAR10.epochs * 2 == 840


def test_published_table():
    assert CIFAR10.published[1] == (90.74, 0.49) and CIFAR10.published[50] == (92.76, 0.09)
    assert CIFAR100.published[1] == (64.22, 0.17) and CIFAR100.published[50] == (69.06, 0.10)
    assert sum(mean for mean, _ in CIFAR10.published.values()) == pytest.approx(1111.44)
    assert sum(mean for mean, _ in CIFAR100.published.values()) == pytest.approx(815.28)


def test_weights_of_the_prototypes():
    """As --help and docs/teachers.md say."""
    quick = {name: recipe.teachers["quick"].prototype_head for name, recipe in RECIPES.items()}
    assert quick == {"CIFAR10": 2, "CIFAR100": 4, "Shapes10": 4, "Folder": 4}
    assert {recipe.teachers["further"].prototype_head for recipe in RECIPES.values()} == {1}


@pytest.mark.parametrize("method", [METHODS[name] for name in ("grafting", "grafting-straight", "grafting-back")])
def test_a_single_grafted_block_has_nothing_to_join(method):
    (phase,) = method.phases(replace(CIFAR10, blocks=range(3, 4)))
    assert (phase.name, phase.span, phase.selects_among) == ("B0", (3, 4), 100)
