import gc
import json
import weakref
from dataclasses import replace

import filelock
import numpy as np
import pytest
import torch
from small import PowerCut, pictures, short_recipe, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from acceleration.feature_cache import CachedTeacher
from comparisons.methods import METHODS
from data.datasets import LabelledImages
from experiments import pictures as pictures_of_cells
from experiments import results, students, sweep
from experiments.cell import Cell
from experiments.cell_runner import CellRunner
from experiments.plan import Plan
from experiments.sweep import Sweep, summarize
from experiments.tensorboard import rewrite_cell
from grafting import distillation
from grafting.distillation import Distillation, NotFinite
from models import checkpoints
from utils import files
from utils.errors import BadInput

CPU = torch.device("cpu")


@pytest.fixture
def recipe():
    """Fewer epochs than elsewhere: this is about which cells run."""
    return short_recipe((1, 1, 1), (1, 4))


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
    sweep.run([plan], CPU)
    return sum(result["status"] == "failed" for result in summarize(plan))


def run_cut(plan, after):
    """Run the plan until `after` cells are done and the next one has started."""
    begun, run_cell = [], CellRunner.run

    def cut(runner, cell):
        begun.append(cell)
        if len(begun) > after:
            raise PowerCut
        return run_cell(runner, cell)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(CellRunner, "run", cut)
        Sweep(plan, CPU).run()


def result(plan, shots, trial):
    return json.loads((plan.output_dir / f"results/{shots}-shot/trial-{trial}.json").read_text())


def numbers(plan):
    """Every figure and weight of a finished plan, without times and paths."""
    found = {}
    for path in sorted((plan.output_dir / "results").rglob("*.json")):
        content = json.loads(path.read_text())
        phases = {name: (p["losses"], p["accuracies"]) for name, p in content["phases"].items()}
        found[path.name, path.parent.name] = (content["best"], content["best_epoch"], content["last"], phases)
    return found, {path.name: weights(path) for path in plan.student_dir.glob("*.pth")}


def test_files_of_a_sweep(plan, teacher):
    assert run(plan(recipe=short_recipe())) == 0
    one = result(plan(), 2, 1)
    assert one["status"] == "done" and set(one["phases"]) == {"B0", "B1", "B2", "L2", "L3"}
    accuracies = {int(epoch): value for epoch, value in one["phases"]["L3"]["accuracies"].items()}
    assert one["best"] == max(accuracies.values()) and one["last"] == accuracies[4]
    assert one["best_epoch"] == min(e for e, value in accuracies.items() if value == one["best"])
    assert one["setting"]["teacher_sha256"] == checkpoints.weights_sha256(teacher)
    assert one["setting"]["schedule"][0] == {
        "phase": "B0", "span": [3, 4], "epochs": 3, "lr_student": 5e-5, "lr_adapter": 5e-4, "batch": 12,
    }  # fmt: skip
    assert one["machine"]["torch"] == torch.__version__ and "command" in one and one["seconds"]["training"] > 0
    assert sorted(path.name for path in plan().student_dir.glob("[!.]*")) == sorted(
        f"vgg-student-graft-{kind}-Tiny-{n}perclass-trial{t}{end}.{suffix}"
        for n in (1, 2) for t in (0, 1) for kind, end in (("block", ""), ("net", ""), ("net", "-last"))
        for suffix in ("pth", "json")
    )  # fmt: skip
    assert one["cached_starts"] == [3, 4, 5] and one["eval_every"] == 2 and one["earlier_processes"] == []
    evaluations = (2 + 1 + 1) + 1 + (1 + 4)  # stage 1, joined, stage 2
    assert sum(one["test_predictions_settled_by"].values()) == 20 * evaluations  # 20 images each
    assert not list(plan().output_dir.rglob("*.checkpoint.pt"))
    assert {path.name for path in plan().output_dir.iterdir()} >= {"results", "table.md", "table.csv", "tensorboard"}
    assert plan.lines[1].startswith(f"teacher {plan().teacher_file}: test accuracy ")


def test_the_order_of_cells_and_which_others_run_change_nothing(plan):
    run(plan("all"))
    for cells in ([(2, 1)], [(1, 1), (1, 0)], [(2, 0), (2, 1)]):
        run(plan("apart", cells=tuple(cells)))
    assert numbers(plan("apart")) == numbers(plan("all"))


def test_best_of_one_takes_the_last_epoch_and_is_never_mixed_with_the_best(plan, recipe):
    whole, last = plan("whole"), plan("last", recipe=recipe.best_of(1))
    run(whole)
    run(last)
    one, other = result(last, 1, 0), result(whole, 1, 0)
    assert one["best"] == one["last"] == other["last"] and one["best_epoch"] == recipe.stage2[1].epochs
    assert len(one["phases"]["L3"]["accuracies"]) < len(other["phases"]["L3"]["accuracies"])
    for cells in (last.cells, ((3, 0),)):
        with pytest.raises(BadInput, match="schedule"):
            Sweep(replace(last, output_dir=whole.output_dir, cells=cells), CPU)


def test_memory_and_eval_every_change_no_result(plan):
    run(plan("cached"))
    run(plan("plain", memory=0, eval_every=100))
    assert any(
        line.startswith("N = 2: teacher features do not fit into --memory and are computed from the images")
        for line in plan.lines
    )
    (cached, _), (plain, _) = numbers(plan("cached")), numbers(plan("plain"))
    for cell, (best, _, last, phases) in cached.items():
        assert plain[cell][3]["L3"][0] == pytest.approx(phases["L3"][0], rel=1e-4)
        assert (plain[cell][0], plain[cell][2]) == (best, last)


def test_finished_cells_are_not_run_again(plan, monkeypatch):
    run(plan(cells=((1, 0), (2, 0))))
    before = result(plan(), 1, 0)
    begun, run_cell = [], CellRunner.run
    monkeypatch.setattr(CellRunner, "run", lambda runner, cell: begun.append(cell.name) or run_cell(runner, cell))
    Sweep(plan(), CPU).run()
    assert begun == ["1-shot trial 1", "2-shot trial 1"]
    assert result(plan(), 1, 0) == before
    assert "2 of 4 cells are done already; --fresh runs them again" in plan.lines


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


def test_fresh_runs_cells_again(plan):
    run(plan())
    path = plan().output_dir / "results/1-shot/trial-0.json"
    path.write_text(path.read_text().replace('"status": "done"', '"status": "failed"'))
    assert run(plan(fresh=True)) == 0
    assert result(plan(), 1, 0)["status"] == "done"


def moments(plan):
    """When each result was written, by cell."""
    return {path.parent.name + path.stem: path.stat().st_mtime_ns for path in results.paths(plan.output_dir)}


def test_an_interrupted_fresh_continues_and_ends(plan):
    """Each cell is run again once, however often the command is interrupted; the next --fresh then starts again."""
    run(plan())
    old = moments(plan())
    run_cut(plan(fresh=True), after=1)
    first = moments(plan())
    assert len(first) == 1 and first["1-shottrial-0"] > old["1-shottrial-0"]
    run_cut(plan(fresh=True), after=1)
    second = moments(plan())
    assert len(second) == 2 and second["1-shottrial-0"] == first["1-shottrial-0"]
    assert run(plan(fresh=True)) == 0
    third = moments(plan())
    assert len(third) == 4 and {**third, **second} == third
    assert not list(plan().output_dir.glob("results/fresh-*"))
    assert run(plan(fresh=True)) == 0
    assert all(moment > third[cell] for cell, moment in moments(plan()).items())


def test_an_interrupted_fresh_continues_from_its_own_checkpoint_only(plan):
    """A checkpoint from before --fresh is outdated; one that --fresh itself has written is not."""
    begun = plan(cells=((1, 0),))
    checkpoint = begun.output_dir / "results/1-shot/trial-0.checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("from before")
    sweep = Sweep(replace(begun, fresh=True), CPU)
    assert not checkpoint.exists()
    files.write_tensors(checkpoint, {"setting": json.dumps(sweep.cells[0].setting.content)})
    Sweep(replace(begun, fresh=True), CPU)
    assert checkpoint.exists()


def test_a_refused_fresh_has_removed_nothing(plan):
    run(plan())
    before = moments(plan())
    lock = filelock.FileLock(plan().output_dir / "results/2-shot/trial-1.lock")
    with lock, pytest.raises(BadInput, match="another process is running the cell"):
        Sweep(plan(fresh=True), CPU)
    assert moments(plan()) == before


def test_a_fresh_that_is_refused_for_one_plan_has_removed_nothing_of_another(plan):
    plans = [plan(name, cells=((1, 0),)) for name in ("one", "two")]
    sweep.run(plans, CPU)
    before = [moments(each) for each in plans]
    lock = filelock.FileLock(plans[1].output_dir / "results/1-shot/trial-0.lock")
    with lock, pytest.raises(BadInput, match="another process is running the cell"):
        sweep.run([replace(each, fresh=True) for each in plans], CPU)
    assert [moments(each) for each in plans] == before
    sweep.run([replace(each, fresh=True) for each in plans], CPU)
    assert all(moments(each)[cell] > old[cell] for each, old in zip(plans, before, strict=True) for cell in old)


@pytest.mark.parametrize("content", [None, {"setting": json.dumps({"dataset": "another"})}])
def test_a_checkpoint_that_cannot_be_continued_is_refused_before_any_work(plan, content):
    """Damaged, or of other settings."""
    checkpoint = plan().output_dir / "results/2-shot/trial-1.checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    files.write_tensors(checkpoint, content) if content else checkpoint.write_text("damaged")
    with pytest.raises(BadInput, match=r"trial-1.checkpoint.pt: (made with another dataset|not a cell's checkpoint)"):
        Sweep(plan(), CPU)


def test_the_checkpoint_of_a_finished_cell_is_removed(plan):
    """As after a power cut just behind the cell's last write."""
    run(plan())
    checkpoint = plan().output_dir / "results/1-shot/trial-0.checkpoint.pt"
    checkpoint.write_text("of the finished cell")
    run(plan())
    assert not checkpoint.exists()


def test_an_interrupted_fresh_does_not_replace_students_elsewhere(plan):
    run(plan())
    run_cut(plan(fresh=True), after=1)
    run(plan("other", seed=1))
    with pytest.raises(BadInput, match="is a student of another run"):
        Sweep(plan(fresh=True, student_dir=plan("other").student_dir), CPU)


def test_students_that_another_run_has_written_meanwhile_are_not_replaced(plan):
    shared = plan().student_dir
    late = Sweep(plan("late", seed=1, student_dir=shared), CPU)
    run(plan())
    with pytest.raises(BadInput, match="is a student of another run"):
        late.run()


def test_two_runs_do_not_write_the_same_students_at_once(plan):
    """The second is refused while the first is in its cell, and has no result then."""
    cells, shared = ((1, 0),), plan().student_dir
    other = Sweep(plan("other", seed=1, student_dir=shared, cells=cells), CPU)
    refused = []

    def meanwhile(line):
        if line.startswith("1-shot trial 0: first the teacher's features"):
            with pytest.raises(
                BadInput, match=r"trial0\.pth: another run is writing it; another --student_dir"
            ) as found:
                other.run()
            refused.append(found)

    run(plan(report=meanwhile, cells=cells))
    assert len(refused) == 1 and not results.paths(other.plan.output_dir)
    assert result(plan(), 1, 0)["students"]["best"] == str(
        students.paths(shared, plan().teacher.architecture, "grafting", "Tiny", 1, 0)["best"]
    )


def test_fresh_opens_one_lock_at_a_time(plan, monkeypatch):
    """Locks of many cells would be more files than a process may have open."""
    held, most, acquire, release = set(), [], filelock.FileLock.acquire, filelock.FileLock.release

    def counted(lock, *given, **named):
        proxy = acquire(lock, *given, **named)
        held.add(lock.lock_file)
        most.append(len(held))
        return proxy

    monkeypatch.setattr(filelock.FileLock, "acquire", counted)
    monkeypatch.setattr(
        filelock.FileLock, "release", lambda lock, *a, **k: held.discard(lock.lock_file) or release(lock, *a, **k)
    )
    Sweep(plan(fresh=True), CPU)
    assert max(most) == 1 and len(most) == 8


def test_fresh_is_prepared_by_the_leader_only(plan):
    one = plan(cells=((1, 0),))
    run(one)
    before = moments(one)
    Sweep(replace(one, fresh=True, is_leader=False), CPU)
    assert moments(one) == before
    Sweep(replace(one, fresh=True), CPU)
    assert not moments(one)


def test_a_cell_that_another_process_finishes_meanwhile_is_not_run_again(plan):
    late = Sweep(plan(), CPU)
    run(plan())
    before = moments(plan())
    late.run()
    assert moments(plan()) == before
    assert "1-shot trial 0: done by another process" in plan.lines


def test_results_that_could_not_share_a_table_are_refused_before_any_work(plan, dataset):
    run(plan(cells=((1, 0),)))
    fewer = replace(dataset, test=lambda: LabelledImages(pictures(19, 2), np.arange(19) % 3))
    with pytest.raises(BadInput, match="of this command differs from 1-shot trial 0 in its test sha256"):
        Sweep(plan(cells=((2, 0),), dataset=fewer), CPU)
    with pytest.raises(BadInput, match=r"trial-0\.json: made with another test sha256"):
        Sweep(plan(dataset=fewer), CPU)


def test_students_of_another_run_are_not_overwritten(plan):
    run(plan("one", cells=((1, 0),)))
    student_dir = plan("one").student_dir
    other = plan("two", cells=((1, 0),), student_dir=student_dir, seed=1)
    for changed in (other, replace(other, fresh=True)):
        with pytest.raises(BadInput, match=r"perclass-trial0\.pth: is a student of another run; another --student_dir"):
            Sweep(changed, CPU)
    with pytest.raises(BadInput, match="is a student of another run"):
        Sweep(replace(other, seed=0), CPU)  # the same setting, but perhaps other rounding
    there = results.path_of(plan("one").output_dir, 1, 0)
    there.rename(there.with_suffix(".checkpoint.pt"))  # as of a run that was interrupted
    with pytest.raises(BadInput, match="is a student of another run"):
        Sweep(replace(other, seed=0), CPU)
    there.with_suffix(".checkpoint.pt").unlink()
    Sweep(replace(other, seed=0), CPU)
    for record in student_dir.glob("*.json"):
        record.unlink()
    with pytest.raises(BadInput, match="is a student of another run"):
        Sweep(replace(other, seed=0), CPU)


def test_students_behind_a_link_are_not_overwritten(plan, tmp_path):
    """Their records name the result by its relative path, which leads elsewhere from the folder behind the link."""
    (tmp_path / "deep/down/students").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/down/students")
    run(plan("one", cells=((1, 0),), student_dir=tmp_path / "link"))
    with pytest.raises(BadInput, match="is a student of another run"):
        Sweep(plan("two", cells=((1, 0),), student_dir=tmp_path / "link"), CPU)


@pytest.mark.parametrize("setting", ["null", "[]", "3"])
def test_an_edited_record_of_a_student_is_one_line(plan, setting):
    run(plan("one", cells=((1, 0),)))
    for record in plan("one").student_dir.glob("*.json"):
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, "setting": json.loads(setting)}))
    with pytest.raises(BadInput, match="is a student of another run"):
        Sweep(plan("two", cells=((1, 0),), student_dir=plan("one").student_dir), CPU)


def test_fresh_with_other_settings_replaces_its_students_and_removes_nothing_it_cannot_redo(plan):
    run(plan())
    before = moments(plan())
    with pytest.raises(BadInput, match="of this command differs from 2-shot trial 0 in its seed"):
        Sweep(plan(cells=((1, 0), (1, 1)), seed=5, fresh=True), CPU)
    assert moments(plan()) == before and not list(plan().output_dir.glob("results/fresh-*"))
    run_cut(plan(fresh=True), after=1)
    run(plan(seed=5, fresh=True))  # not the interrupted one: all cells are run again
    assert {result(plan(), *cell)["setting"]["seed"] for cell in plan().cells} == {5}


@pytest.mark.parametrize(("changed", "named"), [({"seed": 1}, "seed"), ({"subset_seed": 7}, "subset seed")])
def test_results_of_other_settings_are_refused(plan, changed, named):
    one = plan(cells=((1, 0),))
    run(one)
    before = numbers(one)
    with pytest.raises(BadInput, match=f"trial-0.json: made with another {named} .*another --output_dir"):
        run(replace(one, **changed))
    assert numbers(one) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": "done"}', '{"status": "asleep"}'])
def test_damaged_results_are_refused(plan, content):
    one = plan(cells=((1, 0),))
    path = results.path_of(one.output_dir, 1, 0)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(BadInput, match=r"trial-0\.json: not a result file of fskd"):
        run(one)


def test_a_failed_cell_is_recorded_and_the_others_are_run(plan, monkeypatch):
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


def test_a_loss_that_is_not_finite_before_the_best_may_be_chosen_is_a_failed_cell(plan, recipe, monkeypatch):
    """With --best_of 1 the phase has test accuracies then, but none among which the best is chosen."""
    train, epochs = distillation.train, []

    def diverging(*arguments):
        epochs.append(1)
        return float("nan") if len(epochs) == sum(phase.epochs for phase in recipe.phases) - 1 else train(*arguments)

    monkeypatch.setattr(distillation, "train", diverging)
    assert run(plan(recipe=recipe.best_of(1), cells=((1, 0),), eval_every=1)) == 1
    assert result(plan(), 1, 0)["epoch"] == 3 and "best" not in result(plan(), 1, 0)["phases"]["L3"]


def test_a_cell_that_another_process_runs_is_skipped(plan):
    lock = plan().output_dir / "results/1-shot/trial-0.lock"
    lock.parent.mkdir(parents=True)
    with filelock.FileLock(lock):
        run(plan())
        assert [path.name for path in results.paths(plan().output_dir) if path.parent.name == "1-shot"] == [
            "trial-1.json"
        ]
        assert plan.lines[-1].endswith("missing: N = 1, trial 0")
        with pytest.raises(BadInput, match=r"--fresh: another process is running .*trial-0\.json"):
            run(plan(fresh=True))
    assert run(plan()) == 0
    assert len(results.paths(plan().output_dir)) == 4


def test_what_a_killed_process_left_behind_is_removed(plan):
    run(plan(cells=((1, 0),)))
    first = plan(cells=((1, 0),))
    written = [*first.student_dir.glob("[!.]*"), *results.paths(first.output_dir), first.output_dir / "table.md"]
    written.append(first.output_dir / "results/1-shot/trial-0.checkpoint.pt")
    leftovers = [path.with_name(f".{path.name}.0123abcd.tmp") for path in written]
    assert len(leftovers) == 3 + 3 + 1 + 1 + 1
    for leftover in leftovers:
        leftover.write_text("torn")
    run(plan(cells=((1, 0),), fresh=True))
    assert not [path for path in leftovers if path.exists()]


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
    full, half = plan("full", cells=((1, 0),)), plan("half", cells=((1, 0),), precision="bfloat16")
    run(full), run(half)
    losses = [[loss for p in result(made, 1, 0)["phases"].values() for loss in p["losses"]] for made in (full, half)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)
    assert [result(made, 1, 0)["setting"]["precision"] for made in (full, half)] == ["tf32", "bfloat16"]
    with pytest.raises(BadInput, match='another precision \\("tf32", now "bfloat16"\\)'):
        Sweep(replace(full, precision="bfloat16"), CPU)


def test_table_and_figure_follow_the_cells(plan):
    """What a reader sees while a run is going on is what is done so far."""
    seen = []

    def report(line):
        if "best" in line and "trial" in line:
            seen.append(line.partition(":")[0])
        table = plan().output_dir / "table.csv"
        rows.append(len(table.read_text().splitlines()) - 1 if table.exists() else 0)

    rows = []
    Sweep(plan(cells=((1, 0), (2, 0)), report=report), CPU).run()
    assert seen == ["1-shot trial 0", "2-shot trial 0"] and rows[-1] == 1  # told before the second one is in the table
    assert len((plan().output_dir / "table.csv").read_text().splitlines()) == 3
    assert (plan().output_dir / "accuracy.svg").exists() and (plan().output_dir / "accuracy.png").exists()


@pytest.mark.parametrize(("seconds", "made"), [(-1.0, 4), (1e9, 2)])
def test_short_cells_do_not_wait_for_a_table_each(plan, monkeypatch, seconds, made):
    """The first and the last one always do."""
    written = []
    monkeypatch.setattr(sweep, "SUMMARY_SECONDS", seconds)
    monkeypatch.setattr(sweep, "summarize_so_far", lambda plan: written.append(len(results.paths(plan.output_dir))))
    run(plan())
    assert len(written) == made and (written[0], written[-1]) == (1, 4)


def test_where_the_table_cannot_be_made_no_cell_is_lost(plan, monkeypatch):
    """A result of another run appears meanwhile."""
    monkeypatch.setattr(sweep, "SUMMARY_SECONDS", -1.0)
    first = plan(cells=((1, 0),))
    Sweep(first, CPU).run()
    foreign = json.loads((first.output_dir / "results/1-shot/trial-0.json").read_text())
    foreign["setting"] |= {"trial": 7, "seed": 99}

    def report(line):
        plan.lines.append(line)
        files.write_json(results.path_of(first.output_dir, 1, 7), foreign)

    Sweep(plan(report=report), CPU).run()
    assert all(result(plan(), *cell)["status"] == "done" for cell in plan().cells)
    said = [line for line in plan.lines if line.startswith("the table could not be written: ")]
    assert len(said) == 3 and "differs from 1-shot trial 0 in its seed" in said[0]
    with pytest.raises(BadInput, match="differs from 1-shot trial 0 in its seed"):
        summarize(plan())


def test_confusion_matrices_are_those_of_the_result(plan, monkeypatch):
    """The teacher's and the student's of the best epoch, before the result is there: a killed run makes them again."""
    drawn = []

    def draw(matrices, names):
        accuracies = {name: 100 * int(counts.trace()) / int(counts.sum()) for name, counts in matrices.items()}
        drawn.append((accuracies, names, results.path_of(plan().output_dir, 2, 1).exists()))
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(pictures_of_cells, "confusion_picture", draw)
    Sweep(plan(cells=((2, 1),)), CPU).run()
    one = result(plan(), 2, 1)
    assert drawn == [({"teacher": one["teacher"]["accuracy"], "student": one["best"]}, ("a", "b", "c"), False)]
    events = EventAccumulator(str(plan().output_dir / "tensorboard/pictures"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["confusion matrix/N = 02, trial 1", "few-shot images/N = 02"]


def test_of_very_many_classes_no_matrix_is_drawn(plan, monkeypatch):
    """It would take memory as the square of their number, before the result is written."""
    monkeypatch.setattr(pictures_of_cells, "DRAWN_CLASSES", 2)
    monkeypatch.setattr(pictures_of_cells, "confusion", lambda *_: pytest.fail("counted"))
    Sweep(plan(cells=((1, 0),)), CPU).run()
    assert result(plan(), 1, 0)["status"] == "done"


@pytest.mark.parametrize("fails", [False, True])
def test_a_cell_leaves_none_of_its_features_in_memory(plan, monkeypatch, fails):
    """Without the garbage collector, which may come too late for the next cell's cache."""
    views, run_cell = [], Cell.run

    def watched(cell):
        views.append(weakref.ref(cell.views))
        run_cell(cell)
        if fails:
            raise NotFinite("L3", 1)

    monkeypatch.setattr(Cell, "run", watched)
    gc.disable()
    try:
        Sweep(plan(cells=((1, 0),)), CPU).run()
        assert views[0]() is None
    finally:
        gc.enable()


def test_a_finished_cell_has_the_run_that_table_rebuilds(plan):
    run(plan())

    def scalars():
        events = EventAccumulator(str(plan().output_dir / "tensorboard/cells/02-shot/trial-1"))
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    before = scalars()
    rewrite_cell(plan().output_dir, result(plan(), 2, 1))
    assert scalars() == before and len(before) == 2 * 5 + 1 + 4


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("moment", ["before the pictures", "in the last phase"])
def test_where_tensorboard_cannot_be_written_the_cells_go_on(plan, monkeypatch, capfd, moment):
    folder, trained, train = plan().output_dir / "tensorboard", [], distillation.train
    if moment == "before the pictures":
        folder.parent.mkdir()
        folder.write_text("no folder")

    def lose_the_folder(*arguments):
        trained.append(moment)
        if moment == "in the last phase" and len(trained) == sum(phase.epochs for phase in plan().recipe.phases):
            folder.rename(folder.with_name("lost"))
        return train(*arguments)

    monkeypatch.setattr(distillation, "train", lose_the_folder)
    Sweep(plan(cells=((1, 0), (2, 0))), CPU).run()
    assert result(plan(), 1, 0)["status"] == result(plan(), 2, 0)["status"] == "done"
    lost = [line for line in plan.lines if line.startswith("TensorBoard's curves cannot be written (")]
    assert len(lost) == (2 if moment == "before the pictures" else 1)
    assert "Traceback" not in capfd.readouterr().err
    if moment == "before the pictures":
        summarize(plan())
        assert "|  1 | " in plan.lines[-1] and "TensorBoard's accuracy over N cannot be written" in plan.lines[-1]


def test_what_needs_no_cache_says_nothing_of_its_size(plan):
    plans = [plan(name, cells=((1, 0),), method=METHODS[name], memory=0) for name in ("fskd-images", "fskd")]
    sweep.run(plans, CPU)
    (line,) = (line for line in plan.lines if "do not fit into --memory" in line)
    assert plan.lines.index(line) > plan.lines.index(next(text for text in plan.lines if "1-shot trial 0" in text))


def test_another_choice_of_the_best_epoch_is_named(plan):
    run(plan(cells=((1, 0),)))
    with pytest.raises(BadInput, match=r"made with another schedule \(L3, selects among: null, now 1\)"):
        Sweep(plan(cells=((1, 0),), recipe=plan().recipe.best_of(1)), CPU)


def test_a_picture_that_cannot_be_drawn_costs_no_result(plan, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures_of_cells, "confusion_picture", fail)
    Sweep(plan(cells=((1, 0),)), CPU).run()
    assert result(plan(), 1, 0)["status"] == "done"
    assert "the picture 'confusion matrix/N = 01, trial 0' could not be written: No space left on device" in plan.lines
