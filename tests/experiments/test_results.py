import json

import pytest

from experiments import results
from utils import files
from utils.errors import BadInput

RATES = {"lr_student": 1e-4, "lr_adapter": 1e-4}
SETTING = {"dataset": "D", "shots": 1, "trial": 0, "schedule": [{"phase": "B0", "span": [3, 4], "epochs": 9, **RATES}]}
SELECTS = {**SETTING, "schedule": [{**SETTING["schedule"][0], "selects_among": 3}]}
SOUND = {"status": "done", "best": 90.0, "best_epoch": 7, "last": 89, "setting": SETTING, "teacher": {"accuracy": 92.3}}


def write(output_dir, content, shots=1, trial=0):
    path = results.path_of(output_dir, shots, trial)
    files.write_json(path, content)
    return path


def test_only_results_are_read(tmp_path):
    write(tmp_path, SOUND)
    assert results.read_all(tmp_path) == [SOUND]
    write(tmp_path, {**SOUND, "setting": SELECTS})
    assert results.read_all(tmp_path) == [{**SOUND, "setting": SELECTS}]
    write(tmp_path, SOUND)
    for name in ("trial-0.json.tmp", "trial-x.json", ".trial-0.json.ab.tmp", "trial-0.checkpoint.pt"):
        (tmp_path / "results/1-shot" / name).write_text("not a result")
    (tmp_path / "results/fresh-0123abcd.json").write_text("not a result")
    assert results.read_all(tmp_path) == [SOUND]


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"best": "90"}, "best"),
        ({"best": None}, "best"),
        ({"best": float("nan")}, "best"),
        ({"last": 101.0}, "last"),
        ({"last": True}, "last"),
        ({"teacher": {"accuracy": "92"}}, "teacher"),
        ({"teacher": "mine"}, "teacher|indices"),
        ({"machine": ["cpu"]}, "machine"),
        ({"earlier_processes": None}, "iterable|unpack"),
        ({"earlier_processes": ["x"]}, "get"),
        ({"earlier_processes": [{"machine": None}]}, "machine"),
        ({"best": 10.0, "last": 90.0}, "best"),
        ({"setting": SELECTS, "best_epoch": 6}, "best epoch"),
        ({"setting": SELECTS, "best_epoch": 10}, "best epoch"),
        ({"setting": {**SETTING, "shots": 10**30}}, "shots"),
        ({"setting": {**SETTING, "trial": "0"}}, "trial"),
        ({"setting": {**SETTING, "shots": 1.0}}, "shots"),
        ({"setting": {**SETTING, "dataset": None}}, "dataset"),
        ({"setting": {**SETTING, "schedule": 5}}, "not iterable"),
        ({"setting": {**SETTING, "schedule": [{}]}}, "phase"),
        ({"setting": {**SETTING, "schedule": [{**SETTING["schedule"][0], "lr_student": "1e-4"}]}}, "lr_student"),
        ({"setting": {**SETTING, "schedule": [{**SETTING["schedule"][0], "lr_adapter": None}]}}, "lr_adapter"),
        ({"teacher": {"accuracy": 92.3, "file": None}}, "file"),
        ({"command": None}, "command"),
        ({"command": "train_fskd.py"}, "command"),
        ({"command": [3]}, "command"),
        ({"setting": {}}, "dataset"),
        ({"setting": None}, "subscriptable"),
        ({"status": "asleep"}, "asleep"),
    ],
)
def test_edited_results_are_refused_in_one_line(tmp_path, changed, fault):
    write(tmp_path, {**SOUND, **changed})
    with pytest.raises(BadInput, match=rf"trial-0\.json: not a result file of fskd.*({fault})") as refusal:
        results.read_all(tmp_path)
    assert "\n" not in str(refusal.value)


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
