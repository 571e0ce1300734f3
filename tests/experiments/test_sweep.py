import json
from dataclasses import replace

import filelock
import numpy as np
import pytest
import torch
from small import pictures, weights

from acceleration.feature_cache import CachedTeacher
from data.datasets import LabelledImages
from experiments import results
from experiments.sweep import Plan, Sweep, summarize
from grafting.distillation import Distillation, NotFinite
from models import checkpoints
from utils import files
from utils.errors import BadInput

CPU = torch.device("cpu")


@pytest.fixture
def plan(teacher, dataset, recipe, tmp_path):
    """A function that makes a plan of two N and two trials; `plan.lines` is what was reported."""
    teacher_file = tmp_path / "teacher.pth"
    checkpoints.write_teacher(teacher, teacher_file)
    lines = []

    def make(name="run", **changed):
        return replace(Plan(
            dataset, recipe, teacher, teacher_file, ((1, 0), (1, 1), (2, 0), (2, 1)), 0, 6, "tf32", 2,
            tmp_path / "data", tmp_path / name, tmp_path / name / "students", 10**9, False, lines.append,
        ), **changed)  # fmt: skip

    make.lines = lines
    return make


def run(plan):
    Sweep(plan, CPU).run()
    return summarize(plan)


def result(plan, shots, trial):
    return json.loads((plan.output_dir / f"results/{shots}-shot/trial-{trial}.json").read_text())


def numbers(plan):
    """Every figure and weight of a finished plan, without times and paths."""
    found = {}
    for path in sorted((plan.output_dir / "results").rglob("*.json")):
        content = json.loads(path.read_text())
        phases = {name: (p["losses"], p["accuracies"]) for name, p in content["phases"].items()}
        found[path.name, path.parent.name] = (content["best"], content["best_epoch"], content["last"], phases)
    return found, {path.name: weights(path) for path in plan.student_dir.iterdir()}


def test_files_of_a_sweep(plan, teacher):
    assert run(plan()) == 0
    one = result(plan(), 2, 1)
    assert one["status"] == "done" and set(one["phases"]) == {"B0", "B1", "B2", "L2", "L3"}
    accuracies = {int(epoch): value for epoch, value in one["phases"]["L3"]["accuracies"].items()}
    assert one["best"] == max(accuracies.values()) and one["last"] == accuracies[4]
    assert one["best_epoch"] == min(e for e, value in accuracies.items() if value == one["best"])
    assert one["setting"]["teacher_sha256"] == files.sha256_of_file(plan().teacher_file)
    assert one["setting"]["schedule"][0] == {
        "phase": "B0", "span": [3, 4], "epochs": 3, "lr_student": 5e-5, "lr_adapter": 5e-4, "batch": 12,
    }  # fmt: skip
    assert one["machine"]["torch"] == torch.__version__ and "command" in one and one["seconds"]["training"] > 0
    assert sorted(path.name for path in plan().student_dir.iterdir()) == sorted(
        f"vgg-student-graft-{kind}-Tiny-{n}perclass-trial{t}{end}.pth"
        for n in (1, 2) for t in (0, 1) for kind, end in (("block", ""), ("net", ""), ("net", "-last"))
    )  # fmt: skip
    assert one["cuts_kept"] == [3, 4, 5]
    assert not list(plan().output_dir.rglob("*.checkpoint.pt"))
    assert {path.name for path in plan().output_dir.iterdir()} >= {"results", "table.md", "table.csv", "tensorboard"}
    assert plan.lines[0].startswith(f"teacher {plan().teacher_file}: test accuracy ")


def test_the_order_of_cells_and_which_others_run_change_nothing(plan):
    run(plan("all"))
    for places in ([(2, 1)], [(1, 1), (1, 0)], [(2, 0), (2, 1)]):
        run(plan("apart", places=tuple(places)))
    assert numbers(plan("apart")) == numbers(plan("all"))


def test_memory_and_eval_every_change_no_result(plan):
    run(plan("kept"))
    run(plan("plain", memory=0, eval_every=100))
    assert any("N = 2: the teacher is asked anew at every step; --memory 0.1 would keep it" in x for x in plan.lines)
    (kept, _), (plain, _) = numbers(plan("kept")), numbers(plan("plain"))
    for cell, (best, _, last, phases) in kept.items():
        assert plain[cell][3]["L3"][0] == pytest.approx(phases["L3"][0], rel=1e-4)
        assert (plain[cell][0], plain[cell][2]) == (best, last)


def test_finished_cells_are_not_run_again(plan):
    run(plan(places=((1, 0), (2, 0))))
    before = result(plan(), 1, 0)
    watched = Sweep(plan(), CPU)
    begun = []
    original = watched._run_cell
    watched._run_cell = lambda place, *rest: begun.append(place) or original(place, *rest)
    watched.run()
    assert begun == [(1, 1), (2, 1)]
    assert result(plan(), 1, 0) == before
    assert "2 of 4 cells are done already; --fresh redoes them" in plan.lines


def test_only_what_is_left_to_run_takes_memory(plan, monkeypatch):
    run(plan())
    (plan().output_dir / "results/1-shot/trial-0.json").unlink()
    sizes = []

    class Watched(CachedTeacher):
        def few_shot(self, images):
            views = super().few_shot(images)
            sizes.append(len(views.cache.index_of))
            return views

    monkeypatch.setattr("experiments.sweep.CachedTeacher", Watched)
    run(plan())
    assert sizes == [3]


def test_fresh_redoes(plan):
    run(plan())
    path = plan().output_dir / "results/1-shot/trial-0.json"
    path.write_text(path.read_text().replace('"status": "done"', '"status": "failed"'))
    assert run(plan(fresh=True)) == 0
    assert result(plan(), 1, 0)["status"] == "done"


@pytest.mark.parametrize(("changed", "named"), [({"seed": 1}, "seed"), ({"subset_seed": 7}, "subset seed")])
def test_results_of_other_settings_are_refused(plan, changed, named):
    run(plan())
    before = numbers(plan())
    with pytest.raises(BadInput, match=f"trial-0.json: made with another {named} .*another --output_dir"):
        run(plan(**changed))
    assert numbers(plan()) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": "done"}', '{"status": "asleep"}'])
def test_torn_results_are_refused(plan, content):
    run(plan())
    (plan().output_dir / "results/1-shot/trial-0.json").write_text(content)
    with pytest.raises(BadInput, match=r"trial-0\.json: not a result of fskd"):
        run(plan())


def test_a_failed_cell_is_recorded_and_the_others_go_on(plan, monkeypatch):
    sound = Distillation.run

    def failing(self, teacher, views, batch, eval_every, purpose, after_epoch):
        if purpose == (0, 1, 1) and self.phase.name == "L2":
            raise NotFinite("L2", 2)
        sound(self, teacher, views, batch, eval_every, purpose, after_epoch)

    monkeypatch.setattr(Distillation, "run", failing)
    assert run(plan()) == 1
    failed = result(plan(), 1, 1)
    assert (failed["status"], failed["phase"], failed["epoch"]) == ("failed", "L2", 2)
    assert [result(plan(), *cell)["status"] for cell in ((1, 0), (2, 0), (2, 1))] == ["done"] * 3
    assert "1 (1 failed)" in plan.lines[-1]


def test_a_cell_in_another_process_hands_is_left_alone(plan):
    lock = plan().output_dir / "results/1-shot/trial-0.lock"
    lock.parent.mkdir(parents=True)
    with filelock.FileLock(lock, is_singleton=False):
        run(plan())
        assert [path.name for path in results.paths(plan().output_dir) if path.parent.name == "1-shot"] == [
            "trial-1.json"
        ]
        assert plan.lines[-1].endswith("gap: N = 1 lacks trial 0")
        with pytest.raises(BadInput, match=r"--fresh: .*trial-0\.json is in another process's hands"):
            run(plan(fresh=True))
    assert run(plan()) == 0
    assert len(results.paths(plan().output_dir)) == 4


def test_what_a_killed_process_left_behind_is_removed(plan):
    folder = plan().output_dir / "results/1-shot"
    folder.mkdir(parents=True)
    leftover = folder / ".trial-0.checkpoint.pt.0123abcd.tmp"
    leftover.write_text("torn")
    run(plan())
    assert not leftover.exists()


def test_training_labels_are_never_read_in_distillation(plan, dataset):
    """With the few-shot files in place, the training set is not even opened."""
    published = replace(dataset, published_subsets=True)
    plan_of = plan("first", dataset=published)
    run(plan_of)

    def unreadable():
        pytest.fail("the training set was opened")

    run(plan("second", dataset=replace(published, train=unreadable)))
    assert numbers(plan("second")) == numbers(plan_of)


def test_test_labels_count_accuracy_and_decide_nothing_but_the_best_epoch(plan, dataset):
    run(plan("true"))
    wrong = LabelledImages(pictures(20, 2), np.zeros(20, np.int64))
    run(plan("wrong", dataset=replace(dataset, test=lambda: wrong)))
    for name in ("block-Tiny-1perclass-trial0.pth", "net-Tiny-1perclass-trial0-last.pth"):
        written = [plan(run).student_dir / f"vgg-student-graft-{name}" for run in ("true", "wrong")]
        assert weights(written[0]) == weights(written[1])


def test_precisions_are_never_mixed(plan):
    full, half = plan("full", places=((1, 0),)), plan("half", places=((1, 0),), precision="bfloat16")
    run(full), run(half)
    losses = [[loss for p in result(made, 1, 0)["phases"].values() for loss in p["losses"]] for made in (full, half)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)
    assert [result(made, 1, 0)["setting"]["precision"] for made in (full, half)] == ["tf32", "bfloat16"]
    with pytest.raises(BadInput, match='another precision \\("tf32", now "bfloat16"\\)'):
        Sweep(replace(full, precision="bfloat16"), CPU)
