"""The commands of train_fskd.py, a function for each. They return exit statuses; errors become one line."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data import fewshot
from data.datasets import open_dataset
from deployment import formats
from deployment.comparison import Candidate, compare, markdown
from deployment.export import Source, export, require_target
from deployment.networks import candidates, exported, few_shot_of, student_in
from deployment.student import load
from experiments import ranks, results
from experiments.diagnosis import diagnose
from experiments.job import Job, say
from experiments.ranks import SINGLE_PROCESS, Rank
from experiments.summary import rebuild
from experiments.sweep import Sweep, summarize
from grafting.recipes import PUBLISHED_SHOTS, RECIPES
from grafting.teacher import FrozenTeacher
from models import checkpoints, records
from models.vgg import frozen
from utils import files, signals
from utils.errors import BadInput
from utils.precision import arithmetic
from utils.signals import Terminated

Command = Callable[[Job], int]  # to the exit status
ONLY_WITH = {"teacher_from": "train_teacher", "to": "export", "json": "evaluate"}  # flags of one command


def status(args: argparse.Namespace) -> int:
    """Run the command and return its exit status (train_fskd.main). Every error becomes one line."""
    try:
        signals.raise_exceptions()
        return run(args, ranks.join())
    except BadInput as error:
        return _stop(2, str(error))
    except ranks.LeaderFailed:
        return 0  # not an error status: torchrun would then end the leader before it prints its message
    except ranks.RankLost as error:
        return _stop(1, str(error))
    except OSError as error:
        return _stop(2, f"{error.filename or 'the output'}: {error.strerror or error}")
    except torch.cuda.OutOfMemoryError:
        return _stop(2, "the GPU's memory is full; give less to --memory, or take --device cpu")
    except KeyboardInterrupt:
        return _stop(130, f"interrupted; {how_to_continue(args)}")
    except Terminated:
        return _stop(143, f"terminated; {how_to_continue(args)}")


def _stop(status: int, message: str) -> int:
    sys.stderr.write(f"train_fskd.py: {' '.join(message.split())}\n")
    return status


def how_to_continue(args: argparse.Namespace) -> str:
    """What is done after an interruption, and how to continue."""
    command = command_of(args)
    if command is _train_teacher:
        return "the same command continues after the last finished epoch"
    if command is not _sweep:
        return "the same command starts again"
    output_dir = Job(args).output_dir
    done = len(results.paths(output_dir))
    return f"{done} cells are done in {output_dir}; the same command continues from the last checkpoint"


def run(args: argparse.Namespace, rank: Rank = SINGLE_PROCESS) -> int:
    """Run the command; raises BadInput. Only a sweep is shared by several processes."""
    for flag, name in ONLY_WITH.items():
        if getattr(args, flag) and not getattr(args, name):
            raise BadInput(f"--{flag}: only with --{name}")
    job, command = Job(args, rank), command_of(args)
    return command(job) if rank.is_leader or command is _sweep else 0


def command_of(args: argparse.Namespace) -> Command:
    """The command that the flags ask for: a sweep, where they ask for no other."""
    asked = {
        _build_dataset: args.build_dataset,
        _train_teacher: args.train_teacher,
        _diagnose: args.diagnose,
        _evaluate: args.evaluate,
        _export: args.export,
        _predict: args.predict,
        _table: args.table,
    }
    return next((command for command, is_asked in asked.items() if is_asked), _sweep)


def _sweep(job: Job) -> int:
    """Run the cells, distributed over the ranks; the leader prints the table when all are done."""
    with job.rank.leader_first():
        plan = job.plan()
        sweep = Sweep(plan, job.device)
    sweep.run()
    job.rank.wait()
    if not job.rank.is_leader:
        return 0
    of_cells = summarize(plan)
    say(afterwards(job, of_cells))
    return 1 if any(result["status"] == "failed" for result in of_cells) else 0


def afterwards(job: Job, of_cells: list[results.Result]) -> str:
    """Where everything is after a sweep, and the commands to look at it."""
    lines = [
        "",
        f"results: {job.output_dir / 'results'}, table and figure: {job.output_dir / 'table.md'}, accuracy.png",
        f"curves: tensorboard --logdir {shlex.quote(str(job.output_dir))}",
    ]
    students = [result["students"]["best"] for result in of_cells if result["status"] == "done"]
    if students:
        command = shlex.join(["python", "train_fskd.py", *job.inputs()])
        lines += [
            f"students: {job.student_dir}",
            f"compare one with its teacher: {command} --evaluate {shlex.quote(students[-1])}",
        ]
        if job.method.name.startswith("grafting"):
            lines.append(f"use one: {command} --export {shlex.quote(students[-1])}")
    return "\n".join(lines)


def _table(job: Job) -> int:
    rows, text = rebuild(job.output_dir)
    say(text)
    return 1 if any(row.failed for row in rows) else 0


def _build_dataset(job: Job) -> int:
    """Write the 24 few-shot files."""
    for name in ("CIFAR10", "CIFAR100"):
        say(f"reading the images of {name}, downloaded if missing")
        dataset = open_dataset(name, job.args.data_path)
        subset_seed = dataset.subset_seed if job.args.subset_seed is None else job.args.subset_seed
        for shots in PUBLISHED_SHOTS:
            path = fewshot.build(dataset, shots, subset_seed, job.args.data_path)
            images = fewshot.subset(dataset, shots, subset_seed, job.args.data_path)
            say(f"{path}: {len(images)} images, sha256 {files.sha256(images.tobytes())}")
    return 0


def _train_teacher(job: Job) -> int:
    job.train_teacher(job.args.teacher_recipe)
    return 0


def _diagnose(job: Job) -> int:
    shots = max((n for n in job.args.nshot if n <= 10), default=min(job.args.nshot))
    images = fewshot.subset(job.dataset, shots, job.subset_seed, job.args.data_path)
    teacher = FrozenTeacher(job.frozen_teacher(), job.dataset.normalization, job.dataset.test())
    say(f"{job.teacher_file}, linear classifiers fitted on {len(images)} few-shot images (N = {shots})")
    with arithmetic(job.args.precision, job.device):
        say(diagnose(teacher, images).text(job.recipe, job.inputs("data_path"), job.teacher_file))
    return 0


def _evaluate(job: Job) -> int:
    """Measure what is in a file, beside the teacher."""
    path = job.args.evaluate
    if job.args.json:
        _require_json_target(job.args.json)
    networks = _networks_in(path, job)
    say(f"{path}: measuring accuracy and speed on the test images")
    with arithmetic(job.args.precision, job.device):
        figures = compare(networks, job.dataset)
    say(markdown(figures))
    if job.args.json:
        files.write_json(job.args.json, {"file": str(path), "networks": [row.content for row in figures]})
    return 0


def _require_json_target(target: Path) -> None:
    """Raise BadInput now if --json would replace a file that is not its own, or could not be written."""
    if target.exists():
        try:
            is_own = files.read_json(target, "a file of --json").keys() == {"file", "networks"}
        except BadInput:
            is_own = False
        if not is_own:
            raise BadInput(f"--json {target}: exists already and is no file of --json; name another file")
    files.require_writable(target.parent)


def _networks_in(path: Path, job: Job) -> list[Candidate]:
    """The teacher and what is in the file. An exported student is measured alone if its teacher is not there."""
    _require_dataset(path, job)
    if job.args.teacher and not job.teacher_file.exists():
        raise BadInput(f"--teacher {job.teacher_file}: no such file; name the teacher's file")
    if formats.is_exported(path):
        student, teacher_sha256 = exported(path, job.dataset)
        if not job.teacher_file.exists() or files.sha256_of_file(job.teacher_file) != teacher_sha256:
            say(f"{path}: measured alone, since {job.teacher_file} is not its teacher; name it with --teacher")
            return [student]
        return [*candidates("teacher", None, job.teacher_file, job.frozen_teacher(), job.dataset), student]
    kind, state = checkpoints.read(path)
    if kind == "teacher":
        teacher = checkpoints.teacher_from_state(state, path, job.dataset.classes)
        teacher = frozen(teacher).to(job.device, memory_format=torch.channels_last)
        _check_record(path, records.deciding(job.dataset))
    else:
        teacher = job.frozen_teacher()
        _check_record(path, records.deciding(job.dataset, files.sha256_of_file(job.teacher_file)))
    return candidates(kind, state, path, teacher, job.dataset)


def _require_dataset(path: Path, job: Job) -> None:
    """Raise BadInput, before anything is downloaded, if the file says that it is of another data set.

    Pictures in folders may be of any data set.
    """
    if formats.is_exported(path):
        dataset = formats.read(path)[1].dataset
    else:
        record = records.of(path) or {}
        dataset = record.get("dataset") or record.get("setting", {}).get("dataset")
    if dataset != job.name and dataset in RECIPES and job.args.dataset != "Folder":
        raise BadInput(f"{path}: is of {dataset}; add --dataset {dataset}")


def _check_record(path: Path, expected: dict[str, Any]) -> None:
    """Raise BadInput if the file's record differs from what is expected; say what cannot be checked."""
    if not_checked := records.check(path, expected):
        say(not_checked)


def _export(job: Job) -> int:
    """Write a student of stage 2 as one file that needs no other."""
    path = job.args.export
    target = job.args.to or path.with_name(f"{path.stem}-exported.pth")
    require_target(target, job.args.fresh)
    if formats.is_exported(path):
        raise BadInput(f"--export {path}: is exported already; name a student of stage 2 (...-graft-net-...)")
    _require_dataset(path, job)
    kind, state = checkpoints.read(path)
    if kind != "stage 2":
        raise BadInput(f"--export {path}: is a {kind} file; name a student of stage 2 (...-graft-net-...)")
    teacher, teacher_sha256 = job.frozen_teacher(), files.sha256_of_file(job.teacher_file)
    _check_record(path, records.deciding(job.dataset, teacher_sha256))
    shots, subset_seed = few_shot_of(path, job.subset_seed)
    source = Source(
        teacher=teacher,
        scions=student_in(state, path, teacher),
        dataset=job.dataset,
        few_shot=fewshot.subset(job.dataset, shots, subset_seed, job.args.data_path),
        teacher_sha256=teacher_sha256,
        student_sha256=files.sha256_of_file(path),
    )
    say(f"{path}: folding, calibrating, and comparing the written file with it on all test images")
    say(export(source, target))
    say(f"use it: python train_fskd.py --predict {shlex.quote(str(target))} PICTURE")
    return 0


def _predict(job: Job) -> int:
    """Print the three most probable classes of each picture. Returns 1 if one of them cannot be read."""
    student_file, *pictures = job.args.predict
    if not pictures:
        raise BadInput(f"--predict {student_file}: no picture; name one or more behind it")
    student, unreadable = load(student_file), 0
    for picture in pictures:
        try:
            (prediction,) = student.predict([picture])
        except BadInput as error:
            unreadable += 1
            _stop(1, str(error))
        else:
            say(f"{_printable(picture)}: " + ", ".join(f"{name} {100 * p:.1f}%" for name, p in prediction[:3]))
    return 1 if unreadable else 0


def _printable(path: Path) -> str:
    """A file's name in one line, whatever its name holds."""
    return "".join(character if character.isprintable() else "?" for character in str(path))
