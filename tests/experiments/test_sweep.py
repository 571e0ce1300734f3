import fcntl
import gc
import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import (
    PowerCut,
    dataset_not_in_memory,
    numbers,
    overflowing,
    pictures,
    short_recipe,
    small_dataset,
    small_job,
    small_teacher,
    weights,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from acceleration.feature_cache import CachedTeacher
from data.datasets import LabelledImages
from experiments import figure, results, summary, sweep
from experiments import pictures as pictures_of_cells
from experiments.cell import Cell
from experiments.tensorboard import rewrite_cell
from experiments.training import CellTraining
from grafting import distillation
from grafting.distillation import Distillation, NotFinite, student_accuracy
from models import checkpoints
from utils import files
from utils.errors import BadInput

ONE = ("--nshot", "1", "--trials", "1")
TEACHER = small_teacher()


@pytest.fixture
def job(tmp_path):
    """A function that makes a job of two N and two trials, with fewer epochs than elsewhere: this is about which cells
    run. `job.lines` is what was reported.
    """
    lines = []

    def make(*flags, name="run", cells=None, recipe=None, dataset=None, report=lines.append):
        flags = ("--nshot", "1", "2", "--trials", "2", "--memory", "1", *flags)
        recipe = recipe or short_recipe((1, 1), (1, 4))
        made = small_job(tmp_path / name, *flags, dataset=dataset, recipe=recipe, network=TEACHER, report=report)
        if cells:
            made.cells = [Cell(made, *cell) for cell in cells]
        return made

    make.lines = lines
    return make


def run(job):
    """Run the job; how many cells have failed, and the table."""
    sweep.run([job])
    rows, text, _ = summary.write_summary(job.output_dir, pytest.fail)
    return sum(row.failed for row in rows), text


def run_cut(job, after):
    """Run the job until `after` cells are done and the next one has started."""
    begun, run_cell = [], Cell.run

    def cut(cell, *teacher):
        begun.append(cell)
        if len(begun) > after:
            raise PowerCut
        return run_cell(cell, *teacher)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(Cell, "run", cut)
        sweep.run([job])


def result(job, shots, trial):
    return json.loads(results.path_of(job.output_dir, shots, trial).read_text())


def moments(job):
    """When each result was written, by cell."""
    return {path.parent.name + path.stem: path.stat().st_mtime_ns for path in results.paths(job.output_dir)}


def test_files_of_a_sweep(job):
    assert run(job("--eval_every", "2", recipe=short_recipe()))[0] == 0
    one, made = result(job(), 2, 1), job()
    assert one["status"] == "done" and set(one["phases"]) == {"B0", "B1", "B2", "L2", "L3"}
    accuracies = {int(epoch): value for epoch, value in one["phases"]["L3"]["accuracies"].items()}
    assert one["best"] == max(accuracies.values()) and one["last"] == accuracies[4]
    assert one["best_epoch"] == min(e for e, value in accuracies.items() if value == one["best"])
    assert one["setting"]["teacher_sha256"] == checkpoints.weights_sha256(TEACHER)
    assert one["setting"]["schedule"][0] == {
        "phase": "B0", "span": [3, 4], "epochs": 3, "lr_student": 5e-5, "lr_adapter": 5e-4, "batch": 12,
    }  # fmt: skip
    assert one["machine"]["torch"] == torch.__version__ and "command" in one and one["seconds"]["training"] > 0
    assert sorted(path.name for path in made.student_dir.glob("[!.]*")) == sorted(
        f"vgg-student-graft-{kind}-Tiny-{n}perclass-trial{t}{end}.{suffix}"
        for n in (1, 2) for t in (0, 1) for kind, end in (("block", ""), ("net", ""), ("net", "-last"))
        for suffix in ("pth", "json")
    )  # fmt: skip
    assert one["cached_starts"] == [3, 4, 5] and one["eval_every"] == 2 and one["earlier_processes"] == []
    evaluations = (2 + 1 + 1) + 1 + (1 + 4)  # stage 1, joined, stage 2
    assert sum(one["test_predictions_settled_by"].values()) == 20 * evaluations  # 20 images each
    assert not list(made.output_dir.rglob("*.checkpoint.pt"))
    assert {path.name for path in made.output_dir.iterdir()} >= {"results", "table.md", "table.csv", "tensorboard"}
    assert job.lines[1].startswith("teacher teacher.pth: test accuracy ")


def test_the_order_of_cells_and_which_others_run_change_nothing(job, tmp_path):
    run(job(name="all"))
    for cells in ([(2, 1)], [(1, 1), (1, 0)], [(2, 0), (2, 1)]):
        run(job(name="apart", cells=cells))
    assert numbers(tmp_path / "apart") == numbers(tmp_path / "all")


def test_best_of_one_takes_the_last_epoch_and_is_never_mixed_with_the_best(job):
    flags = (*ONE, "--eval_every", "2")
    whole, last = job(*flags, name="whole"), job(*flags, "--best_of", "1", name="last")
    run(whole), run(last)
    one, other = result(last, 1, 0), result(whole, 1, 0)
    assert one["best"] == one["last"] == other["last"] and one["best_epoch"] == 4
    assert len(one["phases"]["L3"]["accuracies"]) < len(other["phases"]["L3"]["accuracies"])
    for cells, named in (
        ([(1, 0)], r"made with another schedule \(L3, selects among: null, now 1\)"),
        ([(2, 0)], "of this command differs from 1-shot trial 0 in its schedule"),
    ):
        with pytest.raises(BadInput, match=named):
            sweep.run([job("--best_of", "1", name="whole", cells=cells)])


def test_memory_and_eval_every_change_no_result(job, tmp_path):
    run(job("--trials", "1", name="cached"))
    run(job("--trials", "1", "--memory", "0", "--eval_every", "100", name="plain"))
    lines = [line for line in job.lines if "do not fit into --memory" in line]
    assert [line[:6] for line in lines] == ["N = 1:", "N = 2:"]
    (cached, _), (plain, _) = numbers(tmp_path / "cached"), numbers(tmp_path / "plain")
    for cell, (best, _, last, phases) in cached.items():
        assert plain[cell][3]["L3"][0] == pytest.approx(phases["L3"][0], rel=1e-4)
        assert (plain[cell][0], plain[cell][2]) == (best, last)


def test_images_that_are_not_in_memory_change_no_result(job, tmp_path):
    run(job(*ONE, name="in"))
    run(job(*ONE, name="not", dataset=dataset_not_in_memory()))
    assert numbers(tmp_path / "not") == numbers(tmp_path / "in")


def test_what_needs_no_cache_says_nothing_of_its_size(job):
    jobs = [job(*ONE, "--memory", "0", "--method", name, name=name) for name in ("fskd", "least-squares")]
    sweep.run(jobs)
    (line,) = (line for line in job.lines if "do not fit into --memory" in line)
    assert job.lines.index(line) > job.lines.index(next(text for text in job.lines if "1-shot trial 0" in text))


def test_finished_cells_are_not_run_again_and_take_no_memory(job, monkeypatch):
    run(job(cells=[(1, 0), (2, 0), (2, 1)]))
    before, sizes, inputs = moments(job()), [], CachedTeacher.inputs

    def watched(teacher, images):
        made = inputs(teacher, images)
        sizes.append(len(teacher.cache.index_of))
        return made

    monkeypatch.setattr(CachedTeacher, "inputs", watched)
    checkpoint = job().cells[0].checkpoint
    checkpoint.write_text("left by a power cut just behind the cell's last write")
    run(job())
    after = moments(job())
    assert {cell: moment for cell, moment in after.items() if cell in before} == before and len(after) == 4
    assert "3 of 4 cells are done already; --fresh runs them again" in job.lines
    assert sizes == [3] and not checkpoint.exists()


def test_a_cell_that_another_process_finishes_meanwhile_is_not_run_again(job):
    other = []

    def report(line):
        if line.startswith("computing the teacher's features") and not other:  # the first one has found no result
            run(job())
            other.append(moments(job()))
        job.lines.append(line)

    run(job(report=report))
    assert [moments(job())] == other
    assert "1-shot trial 0: done by another process" in job.lines


def test_a_cell_that_another_process_runs_is_skipped(job):
    with job().cells[0].lock():
        _, text = run(job())
        assert set(moments(job())) == {"1-shottrial-1", "2-shottrial-0", "2-shottrial-1"}
        assert text.endswith("missing: N = 1, trial 0") and "1-shot trial 0: another process is running it" in job.lines
    assert run(job())[0] == 0 and len(moments(job())) == 4


# --fresh


def test_fresh_removes_everything_at_once_and_is_continued_without_it(job):
    """However often it is interrupted; another --fresh starts again."""
    run(job())
    old = moments(job())
    checkpoint = job().cells[3].checkpoint
    checkpoint.write_text("from before")
    run_cut(job("--fresh"), after=0)
    assert not moments(job()) and not checkpoint.exists()
    run_cut(job("--fresh"), after=1)
    first = moments(job())
    assert set(first) == {"1-shottrial-0"} and first["1-shottrial-0"] > old["1-shottrial-0"]
    run_cut(job(), after=1)
    second = moments(job())
    assert len(second) == 2 and second.items() > first.items()
    assert run(job())[0] == 0
    assert len(moments(job())) == 4 and moments(job()).items() > second.items()


def test_a_refused_fresh_has_removed_nothing_of_any_job(job):
    def jobs(*flags):
        return [job(*ONE, *flags, name=name) for name in ("one", "two")]

    sweep.run(jobs())
    before = [moments(each) for each in jobs()]
    with jobs()[1].cells[0].lock(), pytest.raises(BadInput, match=r"--fresh: another process is running the cell of"):
        sweep.run(jobs("--fresh"))
    assert [moments(each) for each in jobs()] == before
    sweep.run(jobs("--fresh"))
    assert all(moments(each)[cell] > old[cell] for each, old in zip(jobs(), before, strict=True) for cell in old)


def test_fresh_with_other_settings_replaces_its_students_and_removes_nothing_it_cannot_redo(job):
    run(job("--trials", "1"))
    before = moments(job())
    with pytest.raises(BadInput, match="of this command differs from 2-shot trial 0 in its seed"):
        sweep.run([job(*ONE, "--seed", "5", "--fresh")])
    assert moments(job()) == before
    run_cut(job("--trials", "1", "--seed", "5", "--fresh"), after=1)
    run(job("--trials", "1", "--seed", "5"))
    assert [result(job(), shots, 0)["setting"]["seed"] for shots in (1, 2)] == [5, 5]


def test_what_a_killed_process_left_behind_is_removed(job):
    run(job(*ONE))
    made = job(*ONE)
    written = [*made.student_dir.glob("[!.]*"), made.cells[0].result, made.output_dir / "table.md"]
    leftovers = [path.with_name(f".{path.name}.0123abcd.tmp") for path in (*written, made.cells[0].checkpoint)]
    assert len(leftovers) == 3 + 3 + 1 + 1 + 1
    for leftover in leftovers:
        leftover.write_text("torn")
    run(job(*ONE, "--fresh"))
    assert not [path for path in leftovers if path.exists()]


# what is refused, before any work


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "not a cell's checkpoint, or damaged"),
        ({"setting": json.dumps({"dataset": "another"})}, "made with another dataset"),
    ],
)
def test_a_checkpoint_that_cannot_be_continued_is_refused(job, content, fault):
    checkpoint = job().cells[3].checkpoint
    files.write_tensors(checkpoint, content) if content else files.write_text(checkpoint, "damaged")
    with pytest.raises(BadInput, match=rf"trial-1\.checkpoint\.pt: {fault}"):
        sweep.run([job()])
    assert not job.lines


def test_a_damaged_result_is_refused(job):
    files.write_text(job().cells[3].result, '{"status": "done"}')
    with pytest.raises(BadInput, match=r"trial-1\.json: not a result file of fskd"):
        sweep.run([job()])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--seed", "1"], "seed"),
        (["--subset_seed", "7"], "subset seed"),
        (["--precision", "bfloat16"], r'precision \("tf32", now "bfloat16"\)'),
    ],
)
def test_results_of_other_settings_are_refused(job, flags, named):
    run(job(*ONE))
    before = moments(job())
    with pytest.raises(BadInput, match=f"trial-0.json: made with another {named}.*another --output_dir"):
        sweep.run([job(*ONE, *flags)])
    assert moments(job()) == before


def test_results_of_another_test_set_are_refused(job):
    run(job(*ONE))
    fewer = replace(small_dataset(), test=lambda: LabelledImages(pictures(19, 2), np.arange(19) % 3))
    with pytest.raises(BadInput, match="of this command differs from 1-shot trial 0 in its test sha256"):
        sweep.run([job(cells=[(2, 0)], dataset=fewer)])
    with pytest.raises(BadInput, match=r"trial-0\.json: made with another test sha256"):
        sweep.run([job(dataset=fewer)])


FOREIGN = r"perclass-trial0(-last)?\.pth: is a student of another run; another --student_dir"


def test_students_of_another_run_are_not_overwritten(job):
    run(job(*ONE, name="one"))
    made = job(*ONE, name="one")

    def other(*flags):
        return job(*ONE, "--student_dir", str(made.student_dir), *flags, name="two")

    for flags in (["--seed", "1"], ["--seed", "1", "--fresh"], []):  # the last: the same, but perhaps other rounding
        with pytest.raises(BadInput, match=FOREIGN):
            sweep.run([other(*flags)])
    made.cells[0].result.rename(made.cells[0].checkpoint)  # as of a run that was interrupted
    with pytest.raises(BadInput, match=FOREIGN):
        sweep.run([other()])
    made.cells[0].checkpoint.unlink()  # neither: left over
    sweep.run([other()])
    other().cells[0].result.unlink()
    with pytest.raises(BadInput, match="of another run; --fresh runs the cell again, another --student_dir keeps both"):
        sweep.run([other("--seed", "1")])
    for edited in ("null", "3", None):
        for record in made.student_dir.glob("*.json"):
            content = json.loads(record.read_text())
            record.write_text(json.dumps({**content, "setting": json.loads(edited)})) if edited else record.unlink()
        with pytest.raises(BadInput, match=FOREIGN):
            sweep.run([job(*ONE, "--student_dir", str(made.student_dir), name="three")])


def test_students_behind_a_link_are_not_overwritten(job, tmp_path):
    """Their records name the result by its relative path, which leads elsewhere from the folder behind the link."""
    (tmp_path / "deep/down/students").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/down/students")
    run(job(*ONE, "--student_dir", str(tmp_path / "link"), name="one"))
    with pytest.raises(BadInput, match=FOREIGN):
        sweep.run([job(*ONE, "--student_dir", str(tmp_path / "link"), name="two")])


def test_students_that_another_run_writes_meanwhile_are_not_replaced(job):
    """It has written them between this run's start and its cell."""
    shared = (*ONE, "--student_dir", str(job().student_dir))

    def report(line):
        if line.startswith("computing the teacher's features"):
            sweep.run([job(*shared, "--seed", "1", name="other")])

    with pytest.raises(BadInput, match=FOREIGN):
        sweep.run([job(*shared, report=report)])
    assert not moments(job())


def test_two_runs_do_not_write_the_same_students_at_once(job):
    """The second is refused while the first is in its cell, and has no result then."""
    shared, refused = (*ONE, "--student_dir", str(job().student_dir)), []

    def report(line):
        if line.startswith("1-shot trial 0: first the teacher's features"):
            with pytest.raises(
                BadInput, match=r"trial0\.pth: another run is writing it; another --student_dir"
            ) as found:
                sweep.run([job(*shared, "--seed", "1", name="other")])
            refused.append(found)

    run(job(*shared, report=report))
    assert len(refused) == 1 and not moments(job(name="other"))
    assert result(job(), 1, 0)["students"]["best"] == str(job(*shared).cells[0].students["best"])


# what decides a cell's numbers


def test_training_labels_are_never_read_in_distillation(job, tmp_path):
    """With the few-shot files in place, the training set is not even opened."""
    dataset, flags = replace(small_dataset(), published_subsets=True), (*ONE, "--data_path", str(tmp_path / "data"))
    run(job(*flags, name="first", dataset=dataset))
    run(job(*flags, name="second", dataset=replace(dataset, train=lambda: pytest.fail("the training set was opened"))))
    assert numbers(tmp_path / "second") == numbers(tmp_path / "first")


def test_test_labels_count_accuracy_and_decide_nothing_but_the_best_epoch(job):
    wrong = LabelledImages(pictures(20, 2), np.zeros(20, np.int64))
    true_run, wrong_run = (
        job(*ONE, name="true"),
        job(*ONE, name="wrong", dataset=replace(small_dataset(), test=lambda: wrong)),
    )
    run(true_run), run(wrong_run)
    for kind in ("stage 1", "last"):
        assert weights(true_run.cells[0].students[kind]) == weights(wrong_run.cells[0].students[kind])
    assert result(true_run, 1, 0)["last"] != result(wrong_run, 1, 0)["last"]


def test_bfloat16_is_a_little_different(job):
    full, half = job(*ONE, name="full"), job(*ONE, "--precision", "bfloat16", name="half")
    run(full), run(half)
    losses = [[loss for p in result(made, 1, 0)["phases"].values() for loss in p["losses"]] for made in (full, half)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)
    assert [result(made, 1, 0)["setting"]["precision"] for made in (full, half)] == ["tf32", "bfloat16"]


# cells that fail


def test_a_failed_cell_is_recorded_and_the_others_are_run(job, monkeypatch):
    sound = CellTraining.distill

    def failing(self, phase, networks):
        if self.seed_key == (0, 1, 1) and phase.name == "L2":
            raise NotFinite("L2", 2)
        sound(self, phase, networks)

    monkeypatch.setattr(CellTraining, "distill", failing)
    failed, text = run(job())
    assert failed == 1 and "1 (1 failed)" in text and sweep.any_failed([job()])
    one = result(job(), 1, 1)
    assert (one["status"], one["phase"], one["epoch"]) == ("failed", "L2", 2)
    assert [result(job(), *cell)["status"] for cell in ((1, 0), (2, 0), (2, 1))] == ["done"] * 3


@pytest.mark.parametrize(
    ("owner", "name", "phase", "epoch"), [(Distillation, "record", "L3", 1), (CellTraining, "keep_stage1", "B2", 1)]
)
def test_a_student_whose_test_logits_are_not_finite_is_a_failed_cell(job, monkeypatch, owner, name, phase, epoch):
    """In an epoch whose loss was finite, and of stage 1's scions joined."""
    sound = getattr(owner, name)

    def poisoned(self, *arguments):
        if owner is CellTraining or self.phase.name == phase:
            overflowing(self.scion if owner is Distillation else nn.ModuleList(self.networks))
        return sound(self, *arguments)

    monkeypatch.setattr(owner, name, poisoned)
    failed, text = run(job(*ONE))
    one = result(job(), 1, 0)
    assert failed == 1 and "0 (1 failed)" in text
    assert (one["status"], one["phase"], one["epoch"]) == ("failed", phase, epoch)


def test_a_teacher_whose_test_logits_are_not_finite_is_refused_before_any_cell(job):
    made = job(*ONE)
    made.network = overflowing(small_teacher())
    with pytest.raises(BadInput, match=r"^teacher\.pth: its logits are not finite"):
        sweep.run([made])
    assert not made.cells[0].result.exists()


@pytest.mark.parametrize(
    ("correct", "doubt"),
    [(0, "; no better than chance (33%): "), (8, "; little better than chance (33%): "), (20, None)],
)
def test_a_teacher_of_other_data_is_doubted(job, monkeypatch, correct, doubt):
    monkeypatch.setattr(CachedTeacher, "accuracy", lambda *_: 100 * correct / 20)
    monkeypatch.setattr(sweep, "_run_cells", lambda *_: None)
    sweep.run([job(*ONE)])
    assert job.lines[-1].partition("%")[2] == (f"{doubt}was it trained on these data?" if doubt else "")


def test_a_loss_that_is_not_finite_before_the_best_may_be_chosen_is_a_failed_cell(job, monkeypatch):
    """With --best_of 1 the phase has test accuracies then, but none among which the best is chosen."""
    train, epochs = distillation.train, []

    def diverging(*arguments):
        epochs.append(1)
        return float("nan") if len(epochs) == 1 + 1 + 1 + 1 + 3 else train(*arguments)

    monkeypatch.setattr(distillation, "train", diverging)
    assert run(job(*ONE, "--best_of", "1", "--eval_every", "1"))[0] == 1
    assert result(job(), 1, 0)["epoch"] == 3 and "best" not in result(job(), 1, 0)["phases"]["L3"]


@pytest.mark.parametrize("fails", [None, "the loss", "a test logit"])
def test_a_cell_leaves_none_of_its_features_in_memory(job, monkeypatch, fails):
    """Without the garbage collector, which may come too late for the next cell's cache."""
    inputs, run_cell = [], CellTraining.run

    def watched(cell):
        run_cell(cell)
        inputs.append(weakref.ref(cell.inputs))
        if fails == "the loss":
            raise NotFinite("L3", 1)
        if fails:
            network = nn.Sequential(nn.Flatten(), overflowing(nn.Linear(8, 3).requires_grad_(False)))
            network[1].weight.data.mul_(1e30)
            student_accuracy(network, 5, cell.teacher, "L3", 1)

    monkeypatch.setattr(CellTraining, "run", watched)
    gc.disable()
    try:
        sweep.run([job(*ONE)])
        assert inputs[0]() is None
    finally:
        gc.enable()


# table, figure and curves


@pytest.mark.parametrize(("seconds", "tables"), [(-1.0, [1, 2, 3, 4]), (1e9, [4])])
def test_table_and_figure_follow_the_cells(job, monkeypatch, seconds, tables):
    """A reader sees what is done so far. Short cells do not wait for a table each: only the last one does."""
    monkeypatch.setattr(sweep, "SUMMARY_SECONDS", seconds)
    made, sizes = job(), []

    def written(output_dir, report):
        summary.write_summary(output_dir, report)
        sizes.append(len(moments(made)))

    monkeypatch.setattr(sweep, "write_summary", written)
    sweep.run([made])
    assert sizes == tables
    assert {path.name for path in made.output_dir.glob("*.*")} >= {"accuracy.svg", "accuracy.png", "table.csv"}


def test_where_the_table_cannot_be_made_no_cell_is_lost(job, monkeypatch):
    """A result of another run appears meanwhile."""
    monkeypatch.setattr(sweep, "SUMMARY_SECONDS", -1.0)
    run(job(*ONE))
    foreign = result(job(), 1, 0)
    foreign["setting"] |= {"trial": 7, "seed": 99}

    def report(line):
        job.lines.append(line)
        files.write_json(results.path_of(job().output_dir, 1, 7), foreign)

    sweep.run([job(report=report)])
    assert all(result(job(), *cell)["status"] == "done" for cell in ((1, 0), (1, 1), (2, 0), (2, 1)))
    said = [line for line in job.lines if line.startswith("the table could not be written: ")]
    assert len(said) == 3 and "differs from 1-shot trial 0 in its seed" in said[0]


def test_confusion_matrices_are_those_of_the_result(job, monkeypatch):
    """The teacher's, and the student's of the best epoch. By then, the result is there."""
    drawn, made = [], job(cells=[(2, 1)])

    def draw(matrices, names):
        accuracies = {name: 100 * int(counts.trace()) / int(counts.sum()) for name, counts in matrices.items()}
        drawn.append((accuracies, names, made.cells[0].result.exists()))
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(pictures_of_cells, "confusion_picture", draw)
    sweep.run([made])
    one = result(made, 2, 1)
    assert drawn == [({"teacher": one["teacher"]["accuracy"], "student": one["best"]}, ("a", "b", "c"), True)]
    events = EventAccumulator(str(made.output_dir / "tensorboard/pictures"))
    events.Reload()
    assert events.Tags()["images"] == ["Tiny, confusion matrix/N = 02, trial 1"]


def test_of_very_many_classes_no_matrix_is_drawn(job, monkeypatch):
    """It would take memory as the square of their number."""
    monkeypatch.setattr(pictures_of_cells, "DRAWN_CLASSES", 2)
    monkeypatch.setattr(pictures_of_cells, "confusion", lambda *_: pytest.fail("counted"))
    assert run(job(*ONE))[0] == 0


def test_a_finished_cell_has_the_run_that_table_rebuilds(job):
    run(job(cells=[(2, 1)]))

    def scalars():
        events = EventAccumulator(str(job().output_dir / "tensorboard/cells/trial-1"))
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    before = scalars()
    rewrite_cell(job().output_dir, result(job(), 2, 1), pytest.fail)
    assert scalars() == before and len(before) == 2 * 5


def test_where_tensorboard_cannot_be_written_the_cells_go_on(job):
    made = job("--trials", "1")
    files.write_text(made.output_dir / "tensorboard", "no folder")
    sweep.run([made])
    assert result(made, 1, 0)["status"] == result(made, 2, 0)["status"] == "done"
    said = [line for line in job.lines if line.startswith("TensorBoard's files cannot be written (")]
    assert len(said) == 1 and (made.output_dir / "table.md").exists()


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("few_shot_images", OSError(28, "No space left")),
        ("confusion", ValueError("No space left")),
        ("confusion_picture", ImportError("No space left")),
    ],
)
def test_a_picture_that_cannot_be_drawn_costs_no_result(job, monkeypatch, what, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(pictures_of_cells, what, fail)
    sweep.run([job("--trials", "1")])
    for shots in (1, 2):
        assert result(job(), shots, 0)["status"] == "done"
    assert [line for line in job.lines if "No space left" in line] == [
        "TensorBoard's pictures cannot be written (No space left); no result depends on it"
    ]


def test_without_the_figure_there_is_the_table(job, monkeypatch):
    def fail(*_):
        raise ValueError("no such backend")

    monkeypatch.setattr(figure, "draw", fail)
    made = job(*ONE)
    sweep.run([made])
    assert result(made, 1, 0)["status"] == "done" and (made.output_dir / "table.csv").exists()
    assert f"{made.output_dir}: the figure cannot be written (no such backend); no result depends on it" in job.lines


@pytest.mark.parametrize("name", ["x" * 195, "猫" * 65])
def test_a_name_that_is_too_long_is_known_before_training(job, monkeypatch, name):
    monkeypatch.setattr(sweep, "_prepared", lambda *_: pytest.fail("began"))
    made = job(*ONE, dataset=replace(small_dataset(), name=f"Folder-{name}"))
    with pytest.raises(BadInput, match=r"-last\.json: cannot be written \(File name too long\); shorten it"):
        sweep.run([made])


@pytest.mark.parametrize("flags", [(), ("--fresh",)])
def test_a_file_system_without_locks_is_known_before_training(job, monkeypatch, flags):
    def flock(*_):
        raise OSError(37, "No locks available")

    run(job(*ONE))
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(sweep, "_prepared", lambda *_: pytest.fail("began"))
    with pytest.raises(BadInput, match=r"run: its file system has no file locks \(No locks available\)"):
        sweep.run([job(*flags)])
    assert result(job(), 1, 0)["status"] == "done"
