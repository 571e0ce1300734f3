"""Power cuts, lost processes and second runs: whatever happens, the numbers are those of an undisturbed run."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from committed import ROOT
from small import numbers, pixel, pixels, short_recipe, small_job

import train_fskd
from experiments import figure, pictures, training
from experiments import sweep as sweeps
from experiments.summary import write_summary

CELLS = ("1 0", "1 1", "2 0", "2 1")
EPOCHS = 90  # of a cell
SECONDS = 300.0  # after which a process that has not ended is taken to hang
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch.utils.tensorboard", "torchvision.utils", "filelock", "tqdm", "pytest"])


def sweep(folder: str) -> None:
    """Run four cells, saving after every epoch.

    Each start of a cell is a line in started.txt, each checkpoint a dot in saves.txt.
    """
    torch.set_num_threads(1)
    training.CHECKPOINT_SECONDS = -1.0
    figure.draw, pictures.confusion_picture = pixel, pixels
    root, run, save = Path(folder), training.CellTraining.run, training.CellTraining.save

    def noted(self):
        with (root / "started.txt").open("a") as file:
            file.write(f"{self.cell.shots} {self.cell.trial}\n")
        run(self)

    def counted(self):
        save(self)
        with (root / "saves.txt").open("a") as file:
            file.write(".")

    training.CellTraining.run, training.CellTraining.save = noted, counted
    recipe = short_recipe((25, 15), (15, 20))
    assert recipe.epochs == EPOCHS
    flags = ("--nshot", "1", "2", "--trials", "2", "--eval_every", "2", "--memory", "1")
    job = small_job(root, *flags, recipe=recipe)
    if not sweeps.run([job]):  # killed between the last result and the table, which the command then makes
        write_summary(job.output_dir, job.report_once)


def run_in(folder: Path):
    process = processes.Process(target=sweep, args=(str(folder),), daemon=True)
    process.start()
    return process


def finish(process) -> int:
    """The exit status. A process that hangs is killed, and the test fails."""
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        pytest.fail("a run does not end")
    return process.exitcode


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders for runs, the first of them with an undisturbed one."""
    tmp_path = tmp_path_factory.mktemp("runs")
    assert finish(run_in(tmp_path / "undisturbed")) == 0
    return tmp_path


def saves(folder: Path) -> int:
    """How many checkpoints were put in place."""
    try:
        return (folder / "saves.txt").stat().st_size
    except FileNotFoundError:
        return 0


def test_power_cuts_at_random_moments_change_nothing(folders):
    """SIGKILL up to 0.1 s after one of a run's first 30 saves, again and again until a run gets through."""
    moments = random.Random(0)
    cut, struck_at = folders / "cut", []
    for _ in range(len(CELLS) * EPOCHS):  # a run that is cut has done at least an epoch
        before, started = saves(cut), monotonic()
        awaited = before + moments.randint(1, 30)
        process = run_in(cut)
        while process.is_alive() and saves(cut) < awaited and monotonic() - started < SECONDS:
            sleep(0.01)
        process.join(moments.uniform(0, 0.1))
        process.kill()
        status = finish(process)
        assert status in (0, -9), "the sweep fell over"
        if status == 0:
            break
        assert saves(cut) > before, "a run saves nothing"
        struck_at.append(len(list(cut.glob("results/*/trial-*.json"))))
    assert status == 0, "no run got through"
    sys.stdout.write(f"{len(struck_at)} kills; results there at each: {struck_at}\n")  # pytest -s shows it
    assert len(struck_at) >= 8 and len(set(struck_at)) >= 3, "the kills did not strike along the whole run"
    assert numbers(cut) == numbers(folders / "undisturbed")
    assert (cut / "table.md").read_text() == (folders / "undisturbed/table.md").read_text()
    assert not [path for path in cut.rglob("*") if path.suffix in (".tmp", ".pt")]


def test_two_runs_in_one_folder_do_each_cell_once(folders):
    both = folders / "both"
    one, two = run_in(both), run_in(both)
    assert [finish(one), finish(two)] == [0, 0]
    assert sorted((both / "started.txt").read_text().splitlines()) == list(CELLS)
    assert numbers(both) == numbers(folders / "undisturbed")


def under_torchrun(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The small sweep by two processes, restarted once if one is lost: exit status and output. pytest shows errors."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max_restarts", "1"]
    running = subprocess.Popen(
        [sys.executable, *torchrun, str(ROOT / "tests/driver.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip
    try:
        printed, errors = running.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        running.terminate()  # torchrun then ends them, which a kill would leave behind
        with suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=60)
        running.kill()
        pytest.fail("the command does not end")
    sys.stderr.write(errors)
    return running.returncode, printed


def test_torchrun_gives_the_table_of_one_process_after_a_lost_process(with_teacher):
    one, lost = with_teacher / "one", with_teacher / "lost"
    (teacher,) = with_teacher.rglob("*.pth")
    arguments = ["--teacher", str(teacher), "--nshot", "1", "2", "--trials", "2", "--device", "cpu", "--output_dir"]
    assert train_fskd.main(["--dataset", "Folder", *arguments, str(one)]) == 0
    status, printed = under_torchrun(with_teacher, *arguments, str(lost), KILL_RANK="1", KILL_AFTER="5")
    assert status == 0 and printed.count((one / "table.md").read_text()) == 1
    continued = [path for path in lost.rglob("trial-*.json") if json.loads(path.read_text())["earlier_processes"]]
    assert continued, "no process was lost"
    assert numbers(lost) == numbers(one)
