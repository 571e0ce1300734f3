"""The commands on files of students and teachers: --evaluate, --export, --predict. They return exit statuses."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import fewshot
from deployment import export as exporting
from deployment import formats
from deployment.evaluation import TEACHER, Candidate, compare, markdown
from deployment.networks import (
    candidates,
    exported,
    is_plain_student_of,
    of_module,
    shots_and_subset_seed_of,
    student_in,
    whole,
)
from deployment.student import load
from experiments.job import Job
from grafting.recipes import RECIPES
from grafting.teacher import FrozenTeacher
from models import checkpoints, records
from utils import files, machine
from utils.errors import BadInput
from utils.precision import arithmetic
from utils.progress import say
from utils.text import in_one_line


def evaluate(job: Job) -> int:
    """Measure what is in a file, beside the teacher."""
    path = job.args.evaluate
    files.require_there(path)
    if job.args.json:
        _require_json_target(job.args.json, path)
    networks = _networks_in(path, job)
    job.report(f"{path}: measuring accuracy and speed on the test images")
    with arithmetic(job.args.precision, job.device):
        figures = compare(networks, job.dataset)
    job.report(markdown(figures))
    if job.args.json:
        content = {"file": str(path), "machine": machine.description(job.device), "precision": job.args.precision}
        files.write_json(job.args.json, {**content, "networks": [row.content for row in figures]})
    return 0


def _require_json_target(target: Path, network_file: Path) -> None:
    """Raise BadInput now if --json would replace a file that is not its own, or could not be written."""
    if target.absolute() == records.path_of(network_file).absolute():
        raise BadInput(f"--json {target}: is where the record of {network_file} belongs; name another file")
    if target.exists():
        try:
            is_own = files.read_json(target, "a file of --json").keys() >= {"file", "networks"}
        except BadInput:
            is_own = False
        if not is_own:
            raise BadInput(f"--json {target}: exists already and is no file of --json; name another file")
    files.require_writable(target.parent)


def _networks_in(path: Path, job: Job) -> list[Candidate]:
    """The teacher and what is in the file. What needs no teacher is measured alone if its teacher is not there."""
    if job.args.teacher and not job.teacher_file.exists():
        raise BadInput(f"--teacher {job.teacher_file}: no such file; name the teacher's file")
    if formats.is_exported(path):
        network, header = formats.read(path)
        _require_dataset(path, header.dataset, job)
        student = exported(path, network, header, job.dataset, job.device)
        return [
            *_teacher_of(path, lambda t: checkpoints.weights_sha256(t.network) == header.teacher_sha256, job),
            student,
        ]
    _require_dataset(path, _recorded_dataset(path), job)
    kind, state = checkpoints.read(path)
    if kind == "teacher":
        return _with_whole(path, state, job)
    checkpoints.require_classes(kind, state, path, job.dataset.classes)
    teacher = job.frozen_teacher()
    _check_record(path, records.deciding(job.dataset, job.teacher_sha256))
    return candidates(kind, state, path, teacher, job.dataset)


def _with_whole(path: Path, state: checkpoints.State, job: Job) -> list[Candidate]:
    """A teacher alone; or a student without adapters, which has a teacher's layout, beside its teacher."""
    found = whole(state, path, job.dataset, job.device)
    _check_record(path, records.deciding(job.dataset))
    if found.name != TEACHER:
        network = checkpoints.teacher_from_state(state, path, job.dataset.classes)
        recorded = (records.of(path) or {}).get("teacher_sha256")
        if recorded:
            return [*_teacher_of(path, lambda t: checkpoints.weights_sha256(t.network) == recorded, job), found]
        if job.args.teacher:
            return [*_teacher_of(path, lambda t: is_plain_student_of(network, t), job), found]
    elif job.args.teacher and not path.samefile(job.teacher_file):
        raise BadInput(f"--teacher {job.teacher_file}: {path} is a teacher itself; measure each alone")
    elif job.args.teacher_architecture:
        raise BadInput(f"--teacher_architecture: {path} is a teacher itself; leave the flag out")
    return [found]


def _teacher_of(path: Path, is_its: Callable[[FrozenTeacher], bool], job: Job) -> list[Candidate]:
    """The command's teacher, if it is the one that the student in `path` was made with, as `is_its` says.

    Raises BadInput if the command names a file that is no teacher of this data set.
    """
    reason = "is not there"
    if job.teacher_file.exists():
        try:
            teacher = job.frozen_teacher()
        except BadInput:
            if job.args.teacher:
                raise
            reason = "cannot be read as a teacher of this data set"
        else:
            if is_its(teacher):
                return [of_module(TEACHER, teacher.network, job.dataset, job.teacher_file)]
            reason = "is not its teacher"
    job.report(f"{path}: measured alone, since {job.teacher_file} {reason}; name its teacher with --teacher")
    return []


def _recorded_dataset(path: Path) -> str | None:
    """The data set in the record of a teacher or student."""
    record = records.of(path) or {}
    return record.get("dataset") or records.setting_of(path).get("dataset")


def _require_dataset(path: Path, dataset: str | None, job: Job) -> None:
    """Raise BadInput, before anything is downloaded, for a file of another data set than the command names.

    Pictures in folders may be of any data set.
    """
    if dataset is None or dataset == job.name or job.args.dataset == "Folder":
        return
    if dataset.startswith("Folder"):
        raise BadInput(f"{path}: is of {dataset}; add --dataset Folder and the --data_path of its pictures")
    if dataset in RECIPES:
        raise BadInput(f"{path}: is of {dataset}; add --dataset {dataset}")


def _check_record(path: Path, expected: dict[str, Any]) -> None:
    """Raise BadInput if the file's record differs from what is expected; say what cannot be checked."""
    if not_checked := records.check(path, expected):
        say(not_checked)


def export(job: Job) -> int:
    """Write a student as one file that needs no other."""
    path = job.args.export
    target = job.args.to or path.with_name(f"{path.stem}-exported.pth")
    files.require_there(path)
    exporting.require_target(target, job.args.fresh)
    if formats.is_exported(path):
        raise BadInput(f"--export {path}: is exported already; name a student (...-net-...)")
    _require_dataset(path, _recorded_dataset(path), job)
    kind, state = checkpoints.read(path)
    if kind == "stage 1":
        raise BadInput(f"--export {path}: holds the scions of stage 1; name a student (...-net-...)")
    checkpoints.require_classes(kind, state, path, job.dataset.classes)
    teacher = job.frozen_teacher()
    _check_record(path, records.deciding(job.dataset, job.teacher_sha256))
    student = student_in(kind, state, path, teacher)
    shots, subset_seed = shots_and_subset_seed_of(path, job.subset_seed)
    if subset_seed != job.subset_seed and job.args.subset_seed is not None:
        raise BadInput(f"--subset_seed {job.subset_seed}: {path} was made with {subset_seed}; leave the flag out")
    few_shot = fewshot.subset(job.dataset, shots, subset_seed, job.args.data_path)
    recorded = records.setting_of(path).get("subset_sha256")
    if recorded and recorded != files.sha256(few_shot.tobytes()):
        raise BadInput(
            f"--export {path}: was made from other few-shot images than those in {job.args.data_path}; name the folder"
            " of its own with --data_path"
        )
    source = exporting.Source(
        teacher=teacher,
        scions=student,
        dataset=job.dataset,
        few_shot=few_shot,
        teacher_sha256=job.teacher_sha256,
        student_sha256=files.sha256_of_file(path),
    )
    job.report(f"{path}: folding, calibrating, and comparing the written file with it on all test images")
    job.report(exporting.export(source, target))
    job.report(f"use it: python train_fskd.py --predict {shlex.quote(str(target))} PICTURE")
    return 0


def predict(job: Job) -> int:
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
            sys.stderr.write(f"train_fskd.py: {error}\n")
        else:
            classes = (f"{in_one_line(name)} {100 * p:.1f}%" for name, p in prediction[:3])
            job.report(f"{in_one_line(picture)}: {', '.join(classes)}")
    return 1 if unreadable else 0
