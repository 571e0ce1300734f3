import json

import pytest
from committed import ROOT, as_committed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import results, tables
from experiments.tensorboard import rewrite_cell
from grafting.recipes import CIFAR10
from utils import files
from utils.errors import BadInput

RATES = {"lr_student": 1e-4, "lr_adapter": 1e-4}
SETTING = {"dataset": "D", "shots": 1, "trial": 0, "schedule": [{"phase": "B0", "span": [3, 4], "epochs": 9, **RATES}]}
SOUND = {"status": "done", "best": 90.0, "best_epoch": 7, "last": 89, "setting": SETTING, "teacher": {"accuracy": 92.3}}


def write(output_dir, content, shots=1, trial=0):
    path = results.path_of(output_dir, shots, trial)
    files.write_json(path, content)
    return path


def test_only_results_are_read(tmp_path):
    write(tmp_path, SOUND)
    for name in ("trial-0.json.tmp", "trial-x.json", ".trial-0.json.ab.tmp", "trial-0.checkpoint.pt"):
        (tmp_path / "results/1-shot" / name).write_text("not a result")
    (tmp_path / "results/fresh-0123abcd.json").write_text("not a result")
    not_named_by_older_versions = {"method": "grafting", "start": "fresh", "student_width": 0.5}
    assert results.read_all(tmp_path) == [{**SOUND, "setting": {**SETTING, **not_named_by_older_versions}}]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": "done"}', json.dumps(SOUND)[:-20]])
def test_what_is_no_result_is_refused_in_one_line(tmp_path, content):
    write(tmp_path, SOUND).write_text(content)
    with pytest.raises(BadInput, match=r"trial-0\.json: not a result file of fskd") as refusal:
        results.read_all(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"status": "asleep"}, "asleep"),
        ({"best": None}, "no numbers"),
        ({"last": "80.0"}, "no numbers"),
        ({"teacher": "mine"}, "indices"),
        ({"teacher": {}}, "accuracy"),
        ({"setting": None}, "subscriptable"),
        ({"setting": {}}, "shots"),
        ({"setting": {**SETTING, "trial": "first"}}, "first"),
        ({"setting": {**SETTING, "schedule": 5}}, "subscriptable"),
        ({"setting": {**SETTING, "schedule": [{}]}}, "epochs"),
    ],
)
def test_a_result_that_lacks_a_part_is_refused(tmp_path, changed, fault):
    write(tmp_path, {**SOUND, **changed})
    with pytest.raises(BadInput, match=rf"trial-0\.json: not a result file of fskd.*({fault}).*; remove it to run"):
        results.read_all(tmp_path)


@pytest.mark.parametrize(
    "name", ["results/1-shot/trial-7.json", "results/2-shot/trial-0.json", "results/01-shot/trial-0.json"]
)
def test_a_copy_is_refused(tmp_path, name):
    """Otherwise one cell would count twice."""
    write(tmp_path, SOUND)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(SOUND))
    with pytest.raises(BadInput, match=f"{name}: is a copy of 1-shot/trial-0.json"):
        results.read_all(tmp_path)


def test_a_result_of_an_earlier_version_is_still_read(tmp_path):
    """A committed one: its row of the table, and TensorBoard's curves."""
    folder = as_committed(ROOT / "benchmarks/results/CIFAR10", tmp_path)
    found = results.read(folder / "results/1-shot/trial-0.json")
    assert (found["status"], found["setting"]["method"]) == ("done", "grafting")
    (row,) = tables.rows([found], CIFAR10)
    assert (row.shots, row.best, row.last, row.teacher, row.paper) == (1, 91.64, 91.5, 91.88, 90.74)
    rewrite_cell(tmp_path, found, pytest.fail)
    curves = EventAccumulator(str(tmp_path / "tensorboard/cells/trial-0"))
    curves.Reload()
    best = next(event for event in curves.Scalars("CIFAR10, N = 01/test %, L3") if event.step == found["best_epoch"])
    assert best.value == pytest.approx(found["best"])
