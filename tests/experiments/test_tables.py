import pytest
from few_results import CELLS, PHASE, RECIPE, cell

from experiments import tables
from grafting.recipes import FOLDER
from utils.errors import BadInput


def test_rows_by_hand():
    one, ten = tables.rows(CELLS, RECIPE)
    assert (one.best, one.last, one.trials, one.failed) == (81.0, 79.5, 2, 1)
    assert one.best_deviation == pytest.approx(2**0.5) and one.last_deviation == pytest.approx(0.5**0.5)
    assert one.to_teacher == pytest.approx(-11.3) and one.last_to_teacher == pytest.approx(-12.8)
    assert one.paper_to_teacher == pytest.approx(-2.09)
    assert ten.best_deviation is None and ten.paper is None and ten.paper_to_teacher is None


def test_the_printed_table():
    row = "{:>2} | {:>12} | {:>12} | {:>12} | {:>7} | {:>14} | {:>14} | {:>12} | {:>19} |".format
    head = "N", "best", "last", "n", "teacher", "best - teacher", "last - teacher", "paper", "paper - its teacher"
    one = (1, "81.00 ± 1.41", "79.50 ± 0.71", "2 (1 failed)", "92.30", "-11.30", "-12.80", "90.74 ± 0.49", "-2.09")
    rule, *body = tables.markdown(tables.rows(CELLS, RECIPE)).splitlines()[1:]
    assert tables.markdown(tables.rows(CELLS, RECIPE)).startswith("| " + row(*head)) and set(rule) == set("|-: ")
    assert body == [
        "| " + row(*one),
        "| " + row(10, "91.50", "91.25", 1, "92.30", "-0.80", "-1.05", "-", "-"),
        "",
        "±: sample standard deviation over initialisation, order and views, not over subsets, teachers or test images.",
    ]


def test_without_papers_numbers_there_are_no_columns_for_them_and_without_deviations_no_line():
    head, _, *body = tables.markdown(tables.rows(CELLS[-1:], FOLDER)).splitlines()
    assert head.endswith(" best - teacher | last - teacher |") and len(body) == 1


def test_the_csv_is_unrounded():
    text = tables.comma_separated(tables.rows(CELLS, FOLDER))
    assert text.splitlines()[0].startswith("shots,trials,failed,best,best_deviation,last")
    assert "1.4142135623730951" in text


@pytest.mark.parametrize(
    "field", ["dataset", "seed", "precision", "teacher_sha256", "test_sha256", "normalization", "some_later_field"]
)
def test_all_cells_of_a_table_have_one_setting(field):
    changed = cell(10, 0, 91.0, 91.0, **{field: "other"})
    with pytest.raises(
        BadInput, match=f"10-shot trial 0 differs from 1-shot trial 0 in its {field.replace('_', ' ')};"
    ):
        tables.rows([CELLS[0], changed], FOLDER)


@pytest.mark.parametrize(
    ("field", "value"), [("subset_sha256", "other"), ("schedule", [{**PHASE, "lr_student": 1e-4}])]
)
def test_cells_of_one_n_have_one_subset_and_one_schedule(field, value):
    with pytest.raises(BadInput, match=f"1-shot trial 1 differs from 1-shot trial 0 in its {field.split('_')[0]}"):
        tables.rows([CELLS[0], cell(1, 1, 80.0, 79.0, **{field: value})], FOLDER)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"lr_student": 2.5e-4, "lr_adapter": 2.5e-3, "batch": 64}, None),
        ({"epochs": 5}, "schedule"),
        ({"least_views": 100}, "schedule"),
        ({"loss": {"name": "Softened", "temperature": 4.0}}, None),
    ],
)
def test_cells_of_different_n_have_phases_of_one_length(changed, field):
    cells = [CELLS[0], cell(10, 0, 90.0, 90.0, schedule=[{**PHASE, **changed}])]
    if field:
        with pytest.raises(BadInput, match=f"10-shot trial 0 differs from 1-shot trial 0 in its {field};"):
            tables.rows(cells, FOLDER)
    else:
        assert len(tables.rows(cells, FOLDER)) == 2


def test_a_student_is_compared_with_its_teacher_on_the_same_machine():
    here, there = CELLS[0], cell(1, 1, 80.0, 79.0) | {"teacher": {"accuracy": 92.34}}
    (row,) = tables.rows([here, there], FOLDER)
    assert row.teacher == pytest.approx(92.32) and row.to_teacher == pytest.approx(-(12.3 + 12.34) / 2)


def test_remarks_name_missing_and_mixed_results():
    assert tables.remarks(CELLS) == ["missing: N = 10, trial 1, 2"]
    others = [cell(shots, 0, 80.0, 79.0) for shots in (2, 20)] + [cell(5, 1, 80.0, 79.0)]
    line = "missing: N = 2, 10, 20, trial 1, 2; N = 5, trial 0, 2"  # all in one
    assert tables.remarks([*CELLS, *others]) == [line]
    machines = [{"device": "cpu", "torch": "2.6"}, {"device": "cpu", "torch": "2.7"}]
    mixed = [cell(1, trial, 80.0, 79.0) | {"machine": machine} for trial, machine in enumerate(machines)]
    assert tables.remarks(mixed) == ["mixed results: torch 2.6 (1), 2.7 (1)"]
    resumed = [mixed[0] | {"earlier_processes": [{"machine": machines[1]}]}]
    assert tables.remarks(resumed) == ["mixed results: torch 2.6 (1), 2.7 (1)"]
