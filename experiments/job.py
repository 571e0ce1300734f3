"""What a command line asks for, resolved: data set, teacher, folders, the cells to run."""

from __future__ import annotations

import argparse
import glob
import shlex
import sys
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import filelock
import torch
from tqdm import tqdm

from comparisons.methods import METHODS
from data.datasets import ImageDataset, dataset_name, open_dataset
from experiments.plan import Plan
from experiments.ranks import SINGLE_PROCESS, Rank
from experiments.tensorboard import RunningCurves, TeacherCurves, quiet_writers
from grafting.recipes import RECIPES
from models import checkpoints, records, teacher_training
from models.download import fetch_teacher
from models.teacher_recipe import stretched
from models.vgg import ARCHITECTURES, BlockwiseVGG, frozen
from utils import files, machine
from utils.arguments import DATA_PATH, PRECISIONS
from utils.errors import BadInput

TEACHERS = Path("ckpt/teacher")


def say(line: str) -> None:
    """Print a line at once, above any progress bars."""
    tqdm.write(line)
    sys.stdout.flush()


def stop(status: int, message: str) -> int:
    """Write one line to stderr; returns the exit status."""
    sys.stderr.write(f"train_fskd.py: {' '.join(message.split())}\n")
    return status


class Job:
    """A command line on one data set, with its defaults resolved. What costs time is done when it is first needed."""

    def __init__(self, args: argparse.Namespace, rank: Rank = SINGLE_PROCESS):
        self.args = args
        self.rank = rank
        recipe = RECIPES[args.dataset]
        self.recipe = recipe.best_of(args.best_of) if args.best_of else recipe
        self.name = dataset_name(args.dataset, args.data_path)
        if args.dataset == "Shapes10" and args.data_path != DATA_PATH:
            raise BadInput("--data_path: not with --dataset Shapes10, whose images are drawn; leave it out")
        if args.optimize_span != "front" and args.method != "grafting":
            raise BadInput(f"--optimize_span {args.optimize_span}: only with --method grafting")
        method = args.method if args.optimize_span == "front" else f"grafting-{args.optimize_span}"
        self.method = METHODS[method]
        if not self.method.draws and (args.best_of or args.eval_every):
            raise BadInput(f"--best_of and --eval_every: not with --method {method}, which has no epochs to measure")
        run_name = self.name if method == "grafting" else f"{self.name}-{method}"
        self.output_dir = args.output_dir or Path("runs") / run_name
        default_student_dir = args.output_dir / "student" if args.output_dir else Path("ckpt/student")
        self.student_dir = args.student_dir or default_student_dir
        self.architecture = args.teacher_architecture or self.recipe.teacher_architecture
        self.teacher_file = args.teacher or TEACHERS / f"{self.architecture}-blockwise-{self.name.lower()}.pth"

    @cached_property
    def device(self) -> torch.device:
        return machine.device_named(self.args.device, self.rank.local_index)

    @cached_property
    def dataset(self) -> ImageDataset:
        self.announce(f"reading the images of {self.name}")
        dataset = open_dataset(self.args.dataset, self.args.data_path)
        if dataset.skipped:
            self.announce(dataset.skipped)
        return dataset

    @cached_property
    def subset_seed(self) -> int:
        return self.dataset.subset_seed if self.args.subset_seed is None else self.args.subset_seed

    def announce(self, line: str) -> None:
        """Say once, for all ranks, what comes next and takes a while."""
        if self.rank.is_leader:
            say(line)

    def teacher(self) -> BlockwiseVGG:
        """The teacher in the file. The default one is downloaded if it is missing; that of Shapes10 is trained."""
        trains_it = self._is_default_teacher and self.recipe.trains_own_teacher
        if not (self._teacher_is_finished() if trains_it else self.teacher_file.exists()):
            self._get_teacher()
        teacher = checkpoints.read_teacher(self.teacher_file, self.dataset.classes)
        not_checked = records.check(self.teacher_file, records.deciding(self.dataset))
        if not_checked and records.path_of(self.teacher_file).exists():
            self.announce(not_checked)
        return teacher

    def frozen_teacher(self) -> BlockwiseVGG:
        """The teacher on the device."""
        return frozen(self.teacher()).to(self.device, memory_format=torch.channels_last)

    @property
    def _is_default_teacher(self) -> bool:
        return self.args.teacher is None and self.args.teacher_architecture is None

    def _teacher_is_finished(self) -> bool:
        """Whether its file is there, with its whole record if it has one."""
        return self.teacher_file.exists() and not records.is_announced(self.teacher_file)

    def _get_teacher(self) -> None:
        """Get the default teacher. For any other, raise BadInput that says which teachers exist or how to train one."""
        inputs = self.inputs("data_path", "teacher", "teacher_architecture")
        if self._is_default_teacher and self.recipe.trains_own_teacher:
            say(f"{self.teacher_file}: not finished; it is trained now, or awaited if another process is training it")
            self.train_teacher("quick", only_if_missing=True)
        elif self._is_default_teacher and self.recipe.published:
            say(f"{self.teacher_file}: missing; fetching the authors'")
            fetch_teacher(self.teacher_file, self.dataset.classes, self.dataset.name, inputs=inputs)
        else:
            existing = sorted(map(str, TEACHERS.glob(f"*-blockwise-{glob.escape(self.name.lower())}.pth")))
            train = shlex.join(["python", "train_fskd.py", *inputs, "--train_teacher", "--teacher_recipe", "quick"])
            choose = f"name one with --teacher: {', '.join(existing)}" if existing else f"train one: {train}"
            raise BadInput(f"{self.teacher_file}: no such teacher; {choose}")

    def train_teacher(self, recipe_name: str | None, only_if_missing: bool = False) -> None:
        """Train a teacher by the recipe of that name; by default the published one, or "further" from a teacher.

        Raises BadInput if another process is training it. only_if_missing: waits for that one instead, and trains with
        seed 0, because --seed is that of the cells.
        """
        source = self.args.teacher_from
        if source and recipe_name:
            raise BadInput("--teacher_recipe: --teacher_from has a recipe of its own; leave one of them out")
        if source and self.args.teacher_architecture:
            raise BadInput("--teacher_architecture: the file of --teacher_from has its own; leave it out")
        if self.args.teacher_epochs == 0 and not source:
            raise BadInput("--teacher_epochs 0: only with --teacher_from; give 1 or more")
        recipe_name = "further" if source else recipe_name or "published"
        recipe = stretched(self.recipe.teachers[recipe_name], self.args.teacher_epochs)
        if self.args.teacher_prototypes is not None:
            if not (recipe.prototype_head and recipe.epochs):
                where = "--teacher_recipe quick, or --teacher_from with at least one epoch"
                raise BadInput(f"--teacher_prototypes: only with {where}")
            recipe = replace(recipe, prototype_head=self.args.teacher_prototypes)
        for directory in (self.teacher_file.parent, self.output_dir):
            files.require_writable(directory)
        lock = filelock.FileLock(self.teacher_file.with_name(f".{self.teacher_file.stem}.lock"))
        curves = RunningCurves(partial(TeacherCurves, self.output_dir, self.teacher_file.stem), say)
        try:
            with lock.acquire(timeout=-1 if only_if_missing else 0), quiet_writers(), closing(curves):
                if only_if_missing and self._teacher_is_finished():
                    return
                accuracy = teacher_training.train_teacher(
                    self.dataset,
                    source or ARCHITECTURES[self.architecture],
                    recipe,
                    0 if only_if_missing else self.args.seed,
                    self.device,
                    self.teacher_file,
                    say,
                    self.args.fresh,
                    curves,
                )
        except filelock.Timeout:
            raise BadInput(f"{self.teacher_file}: another process is training it") from None
        weight = f", weight {recipe.prototype_head:g} on its prototypes" if recipe.prototype_head else ""
        say(f"{self.teacher_file}: teacher of recipe {recipe.name}{weight}, test accuracy {accuracy:.2f}%")

    def plan(self) -> Plan:
        """The cells of this rank first, then those of the others."""
        args = self.args
        trials = args.trials if self.method.draws else 1
        all_cells = [(shots, trial) for shots in sorted(set(args.nshot)) for trial in range(trials)]
        shard_cells = all_cells[args.shard.index - 1 :: args.shard.count]
        rank_cells = shard_cells[self.rank.index :: self.rank.count]
        usual = machine.memory_to_use(self.device, self.rank.local_count, args.device)
        return Plan(
            dataset=self.dataset,
            recipe=self.recipe,
            teacher=self.teacher(),
            teacher_file=self.teacher_file,
            cells=tuple(rank_cells + [cell for cell in shard_cells if cell not in rank_cells]),
            seed=args.seed,
            subset_seed=self.subset_seed,
            precision=args.precision,
            eval_every=args.eval_every,
            data_path=args.data_path,
            output_dir=self.output_dir,
            student_dir=self.student_dir,
            memory=usual if args.memory is None else int(args.memory * 1e9),
            fresh=args.fresh,
            is_leader=self.rank.is_leader,
            report=say,
            method=self.method,
        )

    def inputs(self, *names: str) -> list[str]:
        """The flags that say on which data, with which teacher and in which precision, without defaults.

        names: of the flags beside --dataset; without any, all of them.
        """
        flags = ["--dataset", self.args.dataset]
        usual = {"data_path": DATA_PATH, "teacher": None, "teacher_architecture": None, "precision": PRECISIONS[0]}
        for name in names or usual:
            value = getattr(self.args, name)
            flags += [] if value == usual[name] else [f"--{name}", str(value)]
        return flags
