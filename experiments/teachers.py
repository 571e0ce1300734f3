"""A job's teacher: read from its file, fetched, or trained."""

from __future__ import annotations

import math
import shlex
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from experiments.tensorboard import TeacherCurves
from models import checkpoints, pretrained, records
from models.download import existing_in, fetch_teacher
from models.teacher_recipe import TeacherRecipe
from models.teacher_training import TeacherTraining
from utils import files, locks
from utils.errors import BadInput

if TYPE_CHECKING:
    from experiments.job import Job

OF_STUDENT = ("grafted", "student_width")  # flags that say what a student is
INPUTS = ("data_path", "networks", "image_size", *OF_STUDENT, "teacher")  # and from what it is made

FOLDER = Path("ckpt/teacher")
TORCHVISION = Path("torchvision")  # as --teacher


def file_of(job: Job) -> Path:
    """The file that the flags name, torchvision's own, or the default."""
    pair, flag = job.pair, job.args.teacher
    if flag == TORCHVISION:
        return pretrained.file_of(pair)
    if pair.is_vgg:
        named = job.args.networks or job.data_recipe.networks
        return flag or FOLDER / f"{named}-blockwise-{job.name.lower()}.pth"
    return flag or FOLDER / f"{pair.pretrained or pair.content['networks']}-{job.name.lower()}-{job.image_size}px.pth"


def read(job: Job) -> nn.Module:
    """The teacher in the job's file. A missing default teacher is downloaded, or trained for Shapes10."""
    if job.args.teacher == TORCHVISION:
        pretrained.fetch(job.pair, job.teacher_file)
    trains_it = _is_default(job) and job.data_recipe.trains_own_teacher
    if not (_is_finished(job) if trains_it else job.teacher_file.exists()):
        _get(job)
    teacher = checkpoints.read_teacher(job.teacher_file, job.dataset.classes, job.pair, job.announce)
    not_checked = records.check(job.teacher_file, records.deciding(job.dataset))
    if not_checked and records.path_of(job.teacher_file).exists():
        job.announce(not_checked)
    return teacher


def _is_default(job: Job) -> bool:
    return job.args.teacher is None and job.args.networks in (None, job.data_recipe.networks)


def _is_finished(job: Job) -> bool:
    """Whether the teacher's file is there, with its whole record if it has one."""
    return job.teacher_file.exists() and not records.is_announced(job.teacher_file)


def _checkpoint(job: Job) -> Path:
    return job.teacher_file.with_suffix(".resume.pt")


def _lock(job: Job, waits: bool) -> AbstractContextManager:
    """Hold the teacher's file. waits: for another process that holds it; if not, raises locks.Timeout."""
    path = job.teacher_file.with_name(f".{job.teacher_file.stem}.lock")
    try:
        return locks.hold(path)
    except locks.Timeout:
        if not waits:
            raise
        job.report(f"{job.teacher_file}: another process is making it; waiting for it")
        return locks.hold(path, timeout=-1)


def _get(job: Job) -> None:
    """Get the default teacher. For any other, raise BadInput that says which teachers exist or how to train one."""
    path, inputs = job.teacher_file, job.flags(*(name for name in INPUTS if name not in OF_STUDENT))
    if _is_default(job) and job.data_recipe.trains_own_teacher:
        unfinished = path.exists() or _checkpoint(job).exists()
        job.report(f"{path}: {'not finished' if unfinished else 'missing'}; it is trained first")
        train(job, "quick", only_if_missing=True)
    elif _is_default(job) and job.data_recipe.published:
        job.report(f"{path}: missing; fetching the authors'")
        with _lock(job, waits=True):  # another process may have just fetched it
            if not path.exists():
                fetch_teacher(path, job.dataset, inputs)
    else:
        existing = existing_in(FOLDER, job.name) if job.pair.is_vgg else []
        quick = ["--teacher_recipe", "quick"] if job.pair.is_vgg else []
        train_one = shlex.join(["python", "train_fskd.py", *inputs, "--train_teacher", *quick])
        choose = f"name one with --teacher: {', '.join(existing)}" if existing else f"train one: {train_one}"
        raise BadInput(f"{path}: no such teacher; {choose}")


def train(job: Job, recipe_name: str | None, only_if_missing: bool = False) -> str | None:
    """Train the job's teacher by the recipe of that name; by default the published one, or "further" from a teacher.

    Returns what is wrong and what to do, if its test accuracy is no better than guessing.
    Raises BadInput if another process is training it. only_if_missing: waits for the other process instead, and trains
    with seed 0, because --seed is the seed of the cells.
    """
    recipe = _recipe(job, recipe_name)
    checkpoint = _checkpoint(job)  # the longest name of its files
    files.require_writable(checkpoint.parent, checkpoint.name)
    files.require_writable(job.output_dir)
    if only_if_missing:  # the cells come next
        files.require_writable(job.student_dir)
        for directory in (job.output_dir, job.student_dir):
            locks.require(directory)
    curves = TeacherCurves(job.output_dir, job.teacher_file.stem, job.name, job.report)
    try:
        with _lock(job, waits=only_if_missing), closing(curves):
            if only_if_missing and _is_finished(job):
                return None
            if not job.args.fresh and _is_finished(job):
                keep = "--fresh trains it again, another --teacher keeps both"
                raise BadInput(f"{job.teacher_file}: a teacher exists already; {keep}")
            records.require_own(job.teacher_file)
            seed, start = 0 if only_if_missing else job.args.seed, job.args.teacher_from
            recipe = _with_epochs(recipe, job)
            pair = job.require_graftable(job.pair)
            training = TeacherTraining(job.dataset, pair, start, recipe, seed, job.device, job.teacher_file)
            accuracy = training.run(job.report, curves.update)
    except locks.Timeout:
        raise BadInput(f"{job.teacher_file}: another process is training it") from None
    weight = f", weight {recipe.prototype_head:g} on its prototypes" if recipe.prototype_head else ""
    job.report(f"{job.teacher_file}: teacher of recipe {recipe.name}{weight}, test accuracy {accuracy:.2f}%")
    return like_guessing(accuracy, recipe, job)


def _with_epochs(recipe: TeacherRecipe, job: Job) -> TeacherRecipe:
    """The recipe with --teacher_epochs; for a new network, with enough steps in an epoch where images are few."""
    if not job.args.teacher_from:
        recipe = recipe.of_few(len(job.dataset.train().labels))
    return recipe if job.args.teacher_epochs is None else replace(recipe, epochs=job.args.teacher_epochs)


def like_guessing(accuracy: float, recipe: TeacherRecipe, job: Job) -> str | None:
    """What to do with a teacher whose test accuracy always naming the largest class could reach by luck, or None.

    By luck: up to two standard deviations above that class's share.
    """
    labels = job.dataset.test().labels
    share = np.bincount(labels).max() / len(labels)
    if accuracy > 100 * (share + 2 * math.sqrt(share * (1 - share) / len(labels))):
        return None
    better = f"--teacher_epochs {2 * recipe.epochs or 1}"
    if recipe.name == "published":
        better = "--teacher_recipe quick"
    return (
        f"{job.teacher_file}: test accuracy {accuracy:.2f}% is no better than guessing ({100 * share:.2f}%); check that"
        f" the images are in the right classes, add training images, or train again with --fresh {better}"
    )


def _recipe(job: Job, name: str | None) -> TeacherRecipe:
    """The recipe of that name with what the flags change. Raises BadInput for flags that do not go together."""
    args, path = job.args, job.teacher_file
    if args.teacher == TORCHVISION:
        raise BadInput("--teacher torchvision: is downloaded, not trained; name a file for the new teacher")
    if path.suffix != ".pth" or path.is_dir():
        raise BadInput(f"--teacher {path}: the name of a teacher's file ends in .pth; choose such a name")
    if args.teacher_from and args.teacher_from.resolve() == path.resolve():
        raise BadInput(f"--teacher_from {args.teacher_from}: --teacher is the same file; name another for the new one")
    if args.teacher_from and name:
        raise BadInput("--teacher_recipe: --teacher_from has a recipe of its own; leave one of them out")
    if args.teacher_from and args.networks:
        raise BadInput("--networks: the file of --teacher_from has its own; leave it out")
    if args.teacher_epochs == 0 and not args.teacher_from:
        raise BadInput("--teacher_epochs 0: only with --teacher_from; give 1 or more")
    if own_recipe := job.pair.teacher_recipe:
        for_vggs = ("teacher_recipe", "teacher_from", "teacher_prototypes")
        if given := [flag for flag in for_vggs if getattr(args, flag) is not None]:
            raise BadInput(f"--{given[0]}: is for VGGs; {job.pair.name} has a recipe of its own; leave it out")
        return own_recipe
    name = "further" if args.teacher_from else name or "published"
    recipe = job.data_recipe.teachers[name]
    if args.teacher_prototypes is None:
        return recipe
    if not recipe.prototype_head or args.teacher_epochs == 0:
        where = "--teacher_recipe quick, or --teacher_from with at least one epoch"
        raise BadInput(f"--teacher_prototypes: only with {where}")
    return replace(recipe, prototype_head=args.teacher_prototypes)
