"""The rule of --diagnose: recomputed from the committed files, and what was measured beside it."""

import json
import shutil
import statistics
from dataclasses import asdict, replace

import numpy as np
import pytest
from committed import as_committed
from conftest import ROOT

from benchmarks import law, teachers
from benchmarks.law import Point, fit, slope
from experiments import expectation, results
from experiments.expectation import RULES
from grafting.recipes import RECIPES

POINTS = law.read(ROOT / law.MEASURED)
BY_NAME = {point.name: point for point in POINTS}
GRAFTABLE_CIFAR100 = ("CIFAR100-prototypes-4-epochs-44", "CIFAR100-prototypes-4")


def point(name, shortfall, rms, loss, origin=None):
    return Point(name, origin or name, law.FITTED, 90.0, 90.0 - shortfall, rms, {1: loss})


@pytest.mark.parametrize("shots", law.SHOTS)
def test_the_rule_is_the_fit_of_the_committed_files(shots):
    found = fit(law.fitted(POINTS), shots)
    assert (round(found.per_point, 3), round(found.error, 2)) == (RULES[shots].per_point, RULES[shots].error)


def test_every_member_of_the_family_is_measured():
    assert {point.name for point in law.fitted(POINTS)} == {member.name for member in teachers.FAMILY}
    for member in teachers.FAMILY:
        made = json.loads((ROOT / law.MEASURED / f"{member.name}.json").read_text())["teacher"]
        described = json.loads(json.dumps(asdict(member)))  # tuples are lists there
        assert {name: made[name] for name in described} == described


def test_the_table_is_made_from_the_files_beside_it():
    text = (ROOT / law.MEASURED / "law.md").read_text()
    assert text == law.markdown(POINTS)
    assert text.split("\n\n")[0] in (ROOT / "docs/teachers.md").read_text()


def test_a_law_is_found_again():
    points = [point(str(x), x, 2.0, 0.5 * x) for x in (1, 9, 30)]
    assert slope(points, 1) == pytest.approx(0.5)
    assert fit(points, 1).error == pytest.approx(0, abs=1e-9)


def test_a_teacher_is_left_out_with_its_rescaled_copies():
    """By hand."""
    points = [point("a", 10, 2, 6), point("b", 20, 2, 9), point("b small", 20, 0.5, 10, "b")]
    without_b, without_a = 10 * 6 / 10**2, (20 * 9 + 20 * 10) / (20**2 + 20**2)
    misses = [6 - 10 * without_a, 9 - 20 * without_b, 10 - 20 * without_b]
    assert fit(points, 1).error == pytest.approx(np.sqrt(np.mean(np.square(misses))))


def test_cells_of_committed_results_are_copied_rightly(tmp_path):
    first = ("CIFAR10-first-teacher", "CIFAR100-first-teacher", "CIFAR100-first-teacher-balanced")
    for name in ("CIFAR10", "CIFAR10-second-teacher", "CIFAR100", *GRAFTABLE_CIFAR100, *first):
        folder = as_committed(ROOT / "benchmarks/results" / name, tmp_path)
        found = results.read_all(folder)
        for n, loss in BY_NAME[name].losses.items():
            cells = [result for result in found if result["setting"]["shots"] == n]
            assert loss == statistics.fmean(cell["teacher"]["accuracy"] - cell["best"] for cell in cells)
        of_trial_0 = {result["teacher"]["accuracy"] for result in found if result["setting"]["trial"] == 0}
        assert of_trial_0 == {BY_NAME[name].accuracy}  # other trials may be of another machine, as in the tables


def enumeration(words):
    """ "a and b", "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}"


def test_what_is_said_of_other_data_sets_is_measured():
    for text, names in {
        expectation.ON_CIFAR10: ("CIFAR10", "CIFAR10-second-teacher", "CIFAR10-first-teacher"),
        expectation.ON_CIFAR100: (*GRAFTABLE_CIFAR100, "CIFAR100", "CIFAR100-first-teacher"),
    }.items():
        measured = enumeration(f"{BY_NAME[name].losses[1]:.2f}" for name in names)
        by_rule = enumeration(f"{RULES[1].loss(BY_NAME[name].shortfall):.1f}" for name in names)
        assert f"lost {measured} points" in text and f"the rule says {by_rule}." in text
    steps = RECIPES["CIFAR100"].steps(1, 100)
    assert f"{steps:,} steps" in expectation.ON_CIFAR100
    assert {RECIPES[name].steps(1, 10) for name in ("CIFAR10", "Shapes10")} == {expectation.RULE_STEPS}


@pytest.mark.parametrize("measured", [[], ["prototypes-1.json", "prototypes-1-scaled-4.json"]])
def test_without_two_trained_teachers_there_is_no_fit(tmp_path, monkeypatch, capsys, measured):
    """Its error is that at teachers left out, each with its rescaled copies."""
    for name in measured:
        shutil.copy(ROOT / law.MEASURED / name, tmp_path)
    monkeypatch.setattr(law, "MEASURED", tmp_path)
    assert law.main([]) == 2
    assert "fewer than two trained teachers of Shapes10" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(measured)


def test_a_teacher_measured_at_one_n_only_is_not_fitted():
    points = [point("a", 1.0, 2.0, 0.5), replace(point("b", 2.0, 2.0, 0.5), losses={1: 0.5, 10: 0.1})]
    assert law.fitted(points) == points[1:]
