import pytest

from experiments import results
from utils.errors import BadInput


def cell(shots, trial, best=None, last=None, **setting):
    status = {"status": "failed"} if best is None else {"status": "done", "best": best, "last": last}
    fields = {"dataset": "D", "seed": 0, "subset_seed": 6, "teacher_sha256": "t"} | setting
    return {**status, "setting": {"shots": shots, "trial": trial, **fields}, "teacher": {"accuracy": 92.3}}


CELLS = [cell(1, 0, 80.0, 79.0), cell(1, 1, 82.0, 80.0), cell(1, 2), cell(10, 0, 91.5, 91.25)]


def test_rows_by_hand():
    one, ten = results.rows(CELLS, {1: (90.74, 0.49)}, 92.83)
    assert (one.best, one.last, one.trials, one.failed) == (81.0, 79.5, 2, 1)
    assert one.best_spread == pytest.approx(2**0.5) and one.last_spread == pytest.approx(0.5**0.5)
    assert one.to_teacher == pytest.approx(-11.3) and one.paper_to_teacher == pytest.approx(-2.09)
    assert ten.best_spread is None and ten.paper is None and ten.paper_to_teacher is None


def test_the_printed_table():
    assert results.markdown(results.rows(CELLS, {1: (90.74, 0.49)}, 92.83)) == "\n".join(
        [
            "|  N |         best |         last |            n | teacher |        paper | best - teacher | paper - its teacher |",
            "| -: | -----------: | -----------: | -----------: | ------: | -----------: | -------------: | ------------------: |",
            "|  1 | 81.00 ± 1.41 | 79.50 ± 0.71 | 2 (1 failed) |   92.30 | 90.74 ± 0.49 |         -11.30 |               -2.09 |",
            "| 10 |        91.50 |        91.25 |            1 |   92.30 |            - |          -0.80 |                   - |",
        ]
    )


def test_the_csv_is_unrounded():
    text = results.comma_separated(results.rows(CELLS, {}, None))
    assert text.splitlines()[0].startswith("shots,trials,failed,best,best_spread,last")
    assert "1.4142135623730951" in text


@pytest.mark.parametrize("field", ["dataset", "seed", "subset_seed", "teacher_sha256"])
def test_mixed_results_make_no_table(field):
    with pytest.raises(BadInput, match=f"10-shot trial 0 was made with another {field.replace('_', ' ')}"):
        results.rows([CELLS[0], cell(10, 0, 91.0, 91.0, **{field: "other"})], {}, None)


def test_remarks_name_gaps_and_mixtures():
    assert results.remarks(CELLS) == ["gap: N = 10 lacks trial 1, 2"]
    machines = [{"device": "cpu", "torch": "2.6"}, {"device": "cpu", "torch": "2.7"}]
    unlike = [cell(1, trial, 80.0, 79.0) | {"machine": machine} for trial, machine in enumerate(machines)]
    assert results.remarks(unlike) == ["mixture: torch 2.6 (1 cells), 2.7 (1 cells)"]


def test_only_results_are_read(tmp_path):
    folder = tmp_path / "results/1-shot"
    folder.mkdir(parents=True)
    for name in ("trial-0.json.tmp", "trial-x.json", ".trial-0.json.ab.tmp", "trial-0.checkpoint.pt"):
        (folder / name).write_text("foreign")
    assert results.read_all(tmp_path) == []
