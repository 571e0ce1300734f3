"""The commands of train_fskd.py, a function for each. They return exit statuses; errors become one line."""

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data import fewshot
from data.datasets import open_dataset
from experiments import comparison, results, student_commands, subsets, sweep, teachers
from experiments.diagnosis import diagnose
from experiments.job import Job
from experiments.results import Result
from experiments.summary import rebuild, table_text, write_summary
from grafting.recipes import PUBLISHED_SHOTS
from models.logits import logits_from
from utils import files, signals
from utils.errors import BadInput
from utils.machine import share_cores
from utils.precision import arithmetic
from utils.signals import Terminated
from utils.torchrun import this_process

PROGRAM = "train_fskd.py"


def run(args: argparse.Namespace, act: Callable[[Job], int] | None = None, program: str = PROGRAM) -> int:
    """Make the Job of a command line, act on it and return the exit status. Every error becomes one line of `program`.

    act: None: what the flags ask for (train_fskd.main).
    """
    job, stop = None, partial(_stop, program)
    try:
        signals.raise_exceptions()
        job = Job(args, None if args.command else this_process())  # only a sweep is shared by torchrun's processes
        return (act or COMMANDS[args.command])(job)
    except BadInput as error:
        return stop(2, str(error))
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "the output"
        if error.errno == errno.ENAMETOOLONG:
            advice = f"; {files.TOO_LONG}"
        else:
            advice = "" if args.command or not job else f"; {how_to_continue(job, act)}"
        return stop(2, f"{where}: {error.strerror or error}{advice}")
    except torch.cuda.OutOfMemoryError:
        return stop(2, "the GPU's memory is full; take --device cpu, or in a sweep give less to --memory")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):  # torch's, on the CPU
            raise
        return stop(2, "the memory is full; run less beside it, or in a sweep give less to --memory")
    except (KeyboardInterrupt, Terminated) as error:
        number, word = (130, "interrupted") if isinstance(error, KeyboardInterrupt) else (143, "terminated")
        return stop(number, f"{word}; {how_to_continue(job, act) if job else 'nothing was begun'}")


def _stop(program: str, status: int, message: str) -> int:
    """Write one line to stderr; returns the exit status."""
    sys.stderr.write(f"{program}: {' '.join(message.split())}\n")
    return status


def how_to_continue(job: Job, act: Callable[[Job], int] | None = None) -> str:
    """What is done after an interruption, and how to continue. act: as in `run`."""
    same = "the same command" + " without --fresh" * job.args.fresh
    if act:
        return f"{same} goes on where it stopped"
    if job.args.train_teacher:
        return "the same command continues after the last finished epoch"
    if job.args.command:
        return "the same command starts again"
    output_dir = job.output_dir
    folders = subsets.folders(output_dir) if job.args.subset_seeds else [output_dir]
    done = sum(len(results.paths(folder)) for folder in folders)
    return f"cells done in {output_dir}: {done}; {same} goes on where it stopped"


def require_sweep(args: argparse.Namespace) -> None:
    """Raise BadInput where the flags ask for anything but cells."""
    if args.command:
        raise BadInput('runs cells only; for what --help lists under "instead of the sweep", use train_fskd.py')
    if args.subset_seeds:
        raise BadInput("--subset_seeds: only of train_fskd.py; here --subset_seed names one subset")


def _sweep(job: Job) -> int:
    """Run the cells, distributed over the processes; the one that ends last prints the table."""
    share_cores(job.process.local_count)
    jobs = job.of_subsets()
    ran_some = sweep.run(jobs)
    cells = [cell for each in jobs for cell in each.cells]
    found = [result for each in jobs for result in sweep.results_of(each)]

    def ends_last() -> bool:  # among torchrun's processes
        newest = max(cells, key=lambda cell: cell.result.stat().st_mtime_ns)
        return newest.was_run if ran_some else job.process.is_first

    if not found:
        where = "other processes run the cells" if cells else f"there is no cell in --shard {job.args.shard}"
        job.report(f"{job.output_dir}: no results yet; {where}")
    elif job.process.count == 1 or (len(found) == len(cells) and ends_last()):
        job.report(_summarized(job, [each for each in jobs if results.paths(each.output_dir)]))
        job.report(afterwards(job, found))
    return int(any(result["status"] == "failed" for result in found))


def _summarized(job: Job, jobs: list[Job]) -> str:
    """Write what was not written after the last cell. Returns the table, with several subsets the one over them."""
    for each in jobs:
        if not any(cell.was_run for cell in each.cells):
            write_summary(each.output_dir, job.report_once)
    return subsets.write(job.output_dir)[1] if job.args.subset_seeds else table_text(job.output_dir)


def afterwards(job: Job, found: list[Result]) -> str:
    """Where everything is after a sweep, and the commands to look at it."""
    figure, picture = (" and figure", ", accuracy.png") if (job.output_dir / "accuracy.png").exists() else ("", "")
    made = f"{job.output_dir / 'results'}, table{figure}: {job.output_dir / 'table.md'}{picture}"
    if job.args.subset_seeds:
        made = f"{job.output_dir / 'subset-*'}, table over subsets: {job.output_dir / subsets.TABLE}"
    lines = [
        "",
        f"results: {made}",
        f"curves: tensorboard --logdir {shlex.quote(str(job.output_dir))}",
    ]
    if done := [result for result in found if result["students"].get("best")]:
        students = [result["students"]["best"] for result in done]
        command, student = ["python", "train_fskd.py"], _first_of_most_shots(done)["students"]["best"]
        inputs, to = job.flags(*teachers.INPUTS), ["--to", "student.pt2"] * job.pair.is_own
        lines += [
            f"students: {', '.join(sorted({str(Path(student).parent) for student in students}))}",
            f"compare one with its teacher: {shlex.join([*command, *job.flags(), '--evaluate', student])}",
            f"use one: {shlex.join([*command, *inputs, '--export', student, *to])}",
        ]
    return "\n".join(lines)


def _first_of_most_shots(found: list[Result]) -> Result:
    return max(found, key=lambda result: (result["setting"]["shots"], -result["setting"]["trial"]))


def _table(job: Job) -> int:
    rows, of_subsets = [], subsets.folders(job.output_dir)
    if results.paths(job.output_dir) or not of_subsets:
        rows, text = rebuild(job.output_dir, job.report_once)
        job.report(text)
    if of_subsets:
        over_subsets, text = subsets.write(job.output_dir)
        job.report(f"{text}\nwritten in {job.output_dir}: {subsets.TABLE}")
        rows = [*rows, *over_subsets]
    return 1 if any(row.failed for row in rows) else 0


def _compare(job: Job) -> int:
    found, text = comparison.write(job.args.compare, job.args.output_dir, job.report_once)
    job.report(text)
    return int(any(result["status"] == "failed" for result in found))


def _build_dataset(job: Job) -> int:
    """Write the 24 few-shot files."""
    if not job.args.dataset.startswith("CIFAR"):
        raise BadInput(f"--build_dataset: writes the files of both CIFARs; {job.args.dataset} needs none")
    for name in ("CIFAR10", "CIFAR100"):
        job.report(f"reading the images of {name}, downloaded if missing")
        dataset = open_dataset(name, job.args.data_path)
        subset_seed = dataset.subset_seed if job.args.subset_seed is None else job.args.subset_seed
        for shots in PUBLISHED_SHOTS:
            path = fewshot.build(dataset, shots, subset_seed, job.args.data_path)
            images = fewshot.subset(dataset, shots, subset_seed, job.args.data_path)
            job.report(f"{path}: {len(images)} images, sha256 {files.sha256(images)}")
    return 0


def _train_teacher(job: Job) -> int:
    fault = teachers.train(job, job.args.teacher_recipe)
    return _stop(PROGRAM, 1, fault) if fault else 0


def _diagnose(job: Job) -> int:
    if not job.pair.is_vgg:
        raise BadInput(f"--diagnose: is for VGGs, on which its limits were measured, not for {job.pair.name}")
    most = min(10, np.bincount(job.dataset.train().labels).min())
    shots = max((n for n in job.args.nshot if n <= most), default=min(job.args.nshot))
    images = job.subset(shots)
    job.report(f"{job.teacher_file}, linear classifiers fitted on {len(images)} few-shot images (N = {shots})")
    with arithmetic(job.args.precision, job.device), logits_from(job.teacher_file):
        found = diagnose(job.frozen_teacher(), images)
    job.report(found.text(job.flags("data_path"), job.teacher_file))
    return 0


COMMANDS: dict[str, Callable[[Job], int]] = {  # by the flag that asks for each; it returns the exit status
    "": _sweep,
    "build_dataset": _build_dataset,
    "train_teacher": _train_teacher,
    "diagnose": _diagnose,
    "evaluate": student_commands.evaluate,
    "export": student_commands.export,
    "predict": student_commands.predict,
    "table": _table,
    "compare": _compare,
}
