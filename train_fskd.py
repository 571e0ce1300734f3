"""Progressive network grafting for few-shot knowledge distillation (Shen et al., AAAI 2021).

    python train_fskd.py --dataset Shapes10                  drawn images, nothing to download
    python train_fskd.py --dataset CIFAR10                   the paper's table: N in 1..10, 20, 50, five trials
    python train_fskd.py --dataset CIFAR100
    python train_fskd.py --build_dataset True                all 24 few-shot files
    python train_fskd.py --dataset CIFAR10 --diagnose        is this teacher graftable?
    python train_fskd.py --dataset CIFAR10 --train_teacher   a teacher of your own

Results, table and curves lie in runs/<dataset>; `tensorboard --logdir runs` shows the curves.
"""

from __future__ import annotations

import argparse
import signal
import sys
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch

from data import fewshot
from data.datasets import open_dataset
from grafting.diagnosis import diagnose
from grafting.evaluation import evaluate
from grafting.recipes import RECIPES
from grafting.store import PlainTeacher
from grafting.sweep import Plan, Sweep
from models import released, training
from models.fetching import fetch_teacher
from models.vgg import ARCHITECTURES, BlockwiseVGG, frozen
from utils import files, machine, results
from utils.arguments import parse
from utils.errors import BadInput


class Terminated(BaseException):
    """SIGTERM arrived."""


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 a cell failed, 2 bad input, 130 or 143 interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    args = parse(argv, __doc__.split("\n\n")[0])
    try:
        return run(args)
    except BadInput as error:
        return _stop(2, str(error))
    except OSError as error:
        return _stop(2, f"{error.filename or 'a file'}: {error.strerror or error}")
    except torch.cuda.OutOfMemoryError:
        return _stop(2, "the GPU's memory is full; give less to --memory, or take --device cpu")
    except KeyboardInterrupt:
        return _stop(130, "interrupted; the same command goes on from the last save")
    except Terminated:
        return _stop(143, "terminated; the same command goes on from the last save")


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _stop(status: int, message: str) -> int:
    sys.stderr.write(f"train_fskd.py: {message}\n")
    return status


def say(line: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(args: argparse.Namespace) -> int:
    """Do what was asked; raises BadInput."""
    if args.build_dataset:
        return build_dataset(args)
    job = Job(args)
    if args.table:
        return job.table()
    if args.train_teacher:
        return job.train_teacher(args.teacher_recipe)
    if args.evaluate:
        return job.evaluate(args.evaluate)
    if args.diagnose:
        return job.diagnose()
    return job.sweep()


def build_dataset(args: argparse.Namespace) -> int:
    """Write the 24 few-shot files."""
    for name in ("CIFAR10", "CIFAR100"):
        dataset = open_dataset(name, args.data_path)
        subset_seed = dataset.subset_seed if args.subset_seed is None else args.subset_seed
        for shots in fewshot.PUBLISHED_SHOTS:
            path = fewshot.build(dataset, shots, subset_seed, args.data_path)
            images = fewshot.subset(dataset, shots, subset_seed, args.data_path)
            say(f"{path}: {len(images)} images, sha256 {files.sha256(images.tobytes())}")
    return 0


class Job:
    """One data set's work: the arguments with their defaults resolved, and the parts they name."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.recipe = RECIPES[args.dataset]
        self.output_dir = args.output_dir or Path("runs") / args.dataset
        self.architecture = args.teacher_architecture or self.recipe.teacher_architecture
        default = f"{self.architecture}-blockwise-{args.dataset.lower()}.pth"
        self.teacher_file = args.teacher or Path("ckpt/teacher") / default

    @cached_property
    def device(self) -> torch.device:
        return machine.device_named(self.args.device)

    @cached_property
    def dataset(self):
        return open_dataset(self.args.dataset, self.args.data_path)

    @cached_property
    def subset_seed(self) -> int:
        return self.dataset.subset_seed if self.args.subset_seed is None else self.args.subset_seed

    def teacher(self) -> BlockwiseVGG:
        """The teacher in the file; where there is none, fetched, or trained if the data set brings its own."""
        if not self.teacher_file.exists():
            if self.recipe.trains_own_teacher:
                self.train_teacher("quick")
            elif self.recipe.published:
                fetch_teacher(self.teacher_file, self.dataset.classes, self.dataset.name)
            else:
                raise BadInput(
                    f"{self.teacher_file}: no such teacher; train one: --dataset {self.dataset.name} --train_teacher"
                )
        return released.read_teacher(self.teacher_file, self.dataset.classes)

    def table(self) -> int:
        found = results.read_all(self.output_dir)
        if not found:
            raise BadInput(f"--table: no results under {self.output_dir}/results; name their --dataset or --output_dir")
        rows = results.rows(found, self.recipe.published, self.recipe.published_teacher)
        say(results.write_table(self.output_dir, rows))
        return 1 if any(row.failed for row in rows) else 0

    def train_teacher(self, recipe_name: str) -> int:
        recipe = training.stretched(self.recipe.teachers[recipe_name], self.args.teacher_epochs)
        accuracy = training.train_teacher(
            self.dataset,
            ARCHITECTURES[self.architecture],
            recipe,
            self.args.seed,
            self.device,
            self.teacher_file,
            say,
        )
        say(f"{self.teacher_file}: teacher of recipe {recipe.name}, test accuracy {accuracy:.2f}%")
        return 0

    def evaluate(self, path: Path) -> int:
        kind, state = released.read(path)
        if kind == "teacher":
            teacher = released.teacher_from_state(state, path, self.dataset.classes)
        else:
            teacher = self.teacher()
        for name, parameters, accuracy in evaluate(kind, state, path, teacher, self.dataset, self.device):
            say(f"{path}: {name}, {parameters:,} parameters, test accuracy {accuracy:.2f}%")
        return 0

    def diagnose(self) -> int:
        shots = max((n for n in self.args.nshot if n <= 10), default=min(self.args.nshot))
        images = fewshot.subset(self.dataset, shots, self.subset_seed, self.args.data_path)
        network = frozen(self.teacher()).to(self.device, memory_format=torch.channels_last)
        teacher = PlainTeacher(network, self.dataset.normalization, self.dataset.test())
        say(f"{self.teacher_file}, linear classifiers fitted on {len(images)} few-shot images (N = {shots})")
        say(diagnose(teacher, images).text())
        return 0

    def sweep(self) -> int:
        args = self.args
        memory = machine.free_memory(self.device) // 2 if args.memory is None else int(args.memory * 1e9)
        plan = Plan(
            self.dataset,
            self.recipe,
            self.teacher(),
            self.teacher_file,
            tuple(sorted(set(args.nshot))),
            args.trials,
            args.seed,
            self.subset_seed,
            args.eval_every,
            args.data_path,
            self.output_dir,
            args.student_dir,
            memory,
            args.fresh,
            say,
        )
        return 1 if Sweep(plan, self.device).run() else 0


if __name__ == "__main__":
    sys.exit(main())
