"""Progressive network grafting for few-shot knowledge distillation (Shen et al., AAAI 2021).

    python train_fskd.py --dataset Shapes10                  synthetic images, nothing to download
    python train_fskd.py --dataset CIFAR10                   the paper's table: N in 1..10, 20, 50, five trials
    python train_fskd.py --dataset CIFAR100
    python train_fskd.py --build_dataset True                all 24 few-shot files
    python train_fskd.py --dataset CIFAR10 --diagnose        can this teacher be grafted?
    python train_fskd.py --dataset CIFAR10 --train_teacher   train a teacher

CIFAR10 at N = 10, one trial, a stand-in teacher of 92.30%, torch 2.15: best 91.21%, last 91.14% (README, Results).
Results, table and curves are in runs/<dataset>; `tensorboard --logdir runs` shows the curves.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

# Threads that wait sleep instead of spinning: beside another job, a training step is then up to ten times faster, and
# alone as fast (docs/speed.md). OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from tqdm import tqdm

from comparisons.methods import METHODS
from data import fewshot
from data.datasets import NAMES, ImageDataset, dataset_name, open_dataset
from deployment import formats
from deployment.comparison import Candidate, compare, markdown
from deployment.export import Source, export, require_target
from deployment.networks import candidates, exported, few_shot_of, student_in
from deployment.student import load
from experiments import ranks, results
from experiments.diagnosis import diagnose
from experiments.ranks import SINGLE_PROCESS, Rank
from experiments.summary import rebuild
from experiments.sweep import Plan, Sweep, summarize
from experiments.tensorboard import TeacherCurves
from grafting.method import JOINS
from grafting.recipes import RECIPES
from grafting.teacher import FrozenTeacher
from models import checkpoints, records, teacher_training
from models.download import fetch_teacher
from models.teacher_recipe import stretched
from models.vgg import ARCHITECTURES, BlockwiseVGG, frozen
from utils import files, machine
from utils.arguments import parser
from utils.errors import BadInput
from utils.precision import arithmetic
from utils.signals import Terminated, terminate

TEACHERS = Path("ckpt/teacher")


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 a cell failed, 2 bad input, 130 or 143 interrupted."""
    signal.signal(signal.SIGTERM, terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are not valid text
    args = arguments(argv)
    try:
        return run(args, ranks.join())
    except BadInput as error:
        return _stop(2, str(error))
    except ranks.LeaderFailed:
        return 0  # not an error status: torchrun would then end the leader before it prints its message
    except ranks.RankLost as error:
        return _stop(1, str(error))
    except OSError as error:
        return _stop(2, f"{error.filename or 'a file'}: {error.strerror or error}")
    except torch.cuda.OutOfMemoryError:
        return _stop(2, "the GPU's memory is full; give less to --memory, or take --device cpu")
    except KeyboardInterrupt:
        return _stop(130, f"interrupted; {how_to_continue(args)}")
    except Terminated:
        return _stop(143, f"terminated; {how_to_continue(args)}")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line. A wrong argument ends the program with one line and exit status 2."""
    trainable = [name for name in ARCHITECTURES if not name.endswith("-graft")]
    quiet = not ranks.prints_for_all()
    methods = [name for name in METHODS if not name.startswith("grafting-")]  # --optimize_span chooses among those
    made = parser(__doc__.split("\n\n")[0], NAMES, methods, list(JOINS), fewshot.PUBLISHED_SHOTS, trainable, quiet)
    return made.parse_args(argv)


def _stop(status: int, message: str) -> int:
    sys.stderr.write(f"train_fskd.py: {' '.join(message.split())}\n")
    return status


def say(line: str) -> None:
    """Print a line at once, above any progress bars."""
    tqdm.write(line)
    sys.stdout.flush()


def how_to_continue(args: argparse.Namespace) -> str:
    """What is done after an interruption, and how to continue."""
    if args.train_teacher:
        return "the same command continues after the last finished epoch"
    output_dir = Job(args).output_dir
    done = len(results.paths(output_dir))
    return f"{done} cells are done in {output_dir}; the same command continues from the last checkpoint"


def run(args: argparse.Namespace, rank: Rank = SINGLE_PROCESS) -> int:
    """Run the command; raises BadInput. Only a sweep is shared by several processes."""
    for flag, command in (("teacher_from", "train_teacher"), ("to", "export"), ("json", "evaluate")):
        if getattr(args, flag) and not getattr(args, command):
            raise BadInput(f"--{flag}: only with --{command}")
    if args.predict:
        return predict(*args.predict) if rank.is_leader else 0
    job = Job(args, rank)
    commands = (
        args.build_dataset,
        args.table,
        args.train_teacher,
        args.evaluate,
        args.diagnose,
        args.export,
        args.predict,
    )
    if not any(commands):
        return job.sweep()
    if not rank.is_leader:
        return 0
    if args.build_dataset:
        return build_dataset(args)
    if args.table:
        rows, text = rebuild(job.output_dir)
        say(text)
        return 1 if any(row.failed for row in rows) else 0
    if args.train_teacher:
        return job.train_teacher(args.teacher_recipe)
    if args.evaluate:
        return job.evaluate(args.evaluate)
    if args.export:
        return job.export(args.export)
    return job.diagnose()


def predict(student_file: Path, *pictures: Path) -> int:
    """Print the three most probable classes of each picture. Returns 1 if one of them cannot be read."""
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
            say(f"{picture}: " + ", ".join(f"{name} {100 * p:.1f}%" for name, p in prediction[:3]))
    return 1 if unreadable else 0


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
    """The commands on one data set, with the arguments' defaults resolved."""

    def __init__(self, args: argparse.Namespace, rank: Rank = SINGLE_PROCESS):
        self.args = args
        self.rank = rank
        self.recipe = RECIPES[args.dataset]
        self.name = dataset_name(args.dataset, args.data_path)
        if args.optimize_span != "front" and args.method != "grafting":
            raise BadInput(f"--optimize_span {args.optimize_span}: only with --method grafting")
        method = args.method if args.optimize_span == "front" else f"grafting-{args.optimize_span}"
        self.method = METHODS[method]
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
        return open_dataset(self.args.dataset, self.args.data_path)

    @cached_property
    def subset_seed(self) -> int:
        return self.dataset.subset_seed if self.args.subset_seed is None else self.args.subset_seed

    def teacher(self) -> BlockwiseVGG:
        """The teacher in the file. If the default file is missing, it is downloaded, or trained for Shapes10."""
        if not self.teacher_file.exists():
            self._get_teacher()
        teacher = checkpoints.read_teacher(self.teacher_file, self.dataset.classes)
        not_checked = records.check(self.teacher_file, records.deciding(self.dataset))
        if not_checked and records.path_of(self.teacher_file).exists() and self.rank.is_leader:
            say(not_checked)
        return teacher

    def _get_teacher(self) -> None:
        """Get the default teacher. For any other, raise BadInput that says which teachers exist or how to train one."""
        is_default = self.args.teacher is None and self.args.teacher_architecture is None
        if is_default and self.recipe.trains_own_teacher:
            self.train_teacher("quick")
        elif is_default and self.recipe.published:
            fetch_teacher(self.teacher_file, self.dataset.classes, self.dataset.name)
        else:
            existing = sorted(map(str, TEACHERS.glob(f"*-blockwise-{self.name.lower()}.pth")))
            choose = (
                f"name one with --teacher: {', '.join(existing)}"
                if existing
                else f"train one: --dataset {self.args.dataset} --train_teacher"
            )
            raise BadInput(f"{self.teacher_file}: no such teacher; {choose}")

    def train_teacher(self, recipe_name: str | None) -> int:
        """Train a teacher by the recipe of that name; by default the published one, or "further" from a teacher."""
        source = self.args.teacher_from
        if source and recipe_name:
            raise BadInput("--teacher_recipe: --teacher_from has a recipe of its own; leave one of them out")
        if self.args.teacher_epochs == 0 and not source:
            raise BadInput("--teacher_epochs 0: only with --teacher_from; give 1 or more")
        recipe_name = "further" if source else recipe_name or "published"
        recipe = stretched(self.recipe.teachers[recipe_name], self.args.teacher_epochs)
        curves = TeacherCurves(self.output_dir, self.teacher_file.stem)
        try:
            accuracy = teacher_training.train_teacher(
                self.dataset,
                source or ARCHITECTURES[self.architecture],
                recipe,
                self.args.seed,
                self.device,
                self.teacher_file,
                say,
                self.args.fresh,
                curves,
            )
        finally:
            curves.close()
        say(f"{self.teacher_file}: teacher of recipe {recipe.name}, test accuracy {accuracy:.2f}%")
        return 0

    def frozen_teacher(self) -> BlockwiseVGG:
        """The teacher on the device."""
        return frozen(self.teacher()).to(self.device, memory_format=torch.channels_last)

    def evaluate(self, path: Path) -> int:
        """Measure what is in a file, beside the teacher."""
        with arithmetic(self.args.precision, self.device):
            figures = compare(self.candidates(path), self.dataset)
        measured = figures[1:] or figures
        for row in measured:
            say(f"{path}: {row.name}, {row.parameters:,} parameters, test accuracy {row.accuracy:.2f}%")
        say(f"\n{markdown(figures)}")
        if self.args.json:
            files.write_json(self.args.json, {"file": str(path), "networks": [row.content for row in figures]})
        return 0

    def candidates(self, path: Path) -> list[Candidate]:
        """The teacher and what is in the file. An exported student is measured alone if its teacher is not there."""
        if formats.is_exported(path):
            student, teacher_sha256 = exported(path, self.dataset)
            if not self.teacher_file.exists() or files.sha256_of_file(self.teacher_file) != teacher_sha256:
                say(f"{path}: measured alone, since {self.teacher_file} is not its teacher; name it with --teacher")
                return [student]
            return [*candidates("teacher", None, self.teacher_file, self.frozen_teacher(), self.dataset), student]
        kind, state = checkpoints.read(path)
        if kind == "teacher":
            teacher = checkpoints.teacher_from_state(state, path, self.dataset.classes)
            teacher = frozen(teacher).to(self.device, memory_format=torch.channels_last)
            self.check_record(path, records.deciding(self.dataset))
        else:
            teacher = self.frozen_teacher()
            self.check_record(path, records.deciding(self.dataset, files.sha256_of_file(self.teacher_file)))
        return candidates(kind, state, path, teacher, self.dataset)

    def check_record(self, path: Path, expected: dict[str, Any]) -> None:
        """Raise BadInput if the file's record differs from what is expected; say what cannot be checked."""
        if not_checked := records.check(path, expected):
            say(not_checked)

    def export(self, path: Path) -> int:
        """Write a student of stage 2 as one file that needs no other."""
        target = self.args.to or path.with_name(f"{path.stem}-exported.pth")
        require_target(target, self.args.fresh)
        kind, state = checkpoints.read(path)
        if kind != "stage 2":
            raise BadInput(f"--export {path}: is a {kind} file; name a student of stage 2 (...-graft-net-...)")
        teacher, teacher_sha256 = self.frozen_teacher(), files.sha256_of_file(self.teacher_file)
        self.check_record(path, records.deciding(self.dataset, teacher_sha256))
        shots, subset_seed = few_shot_of(path, self.subset_seed)
        source = Source(
            teacher=teacher,
            scions=student_in(state, path, teacher),
            dataset=self.dataset,
            few_shot=fewshot.subset(self.dataset, shots, subset_seed, self.args.data_path),
            teacher_sha256=teacher_sha256,
            student_sha256=files.sha256_of_file(path),
        )
        say(export(source, target))
        return 0

    def diagnose(self) -> int:
        shots = max((n for n in self.args.nshot if n <= 10), default=min(self.args.nshot))
        images = fewshot.subset(self.dataset, shots, self.subset_seed, self.args.data_path)
        teacher = FrozenTeacher(self.frozen_teacher(), self.dataset.normalization, self.dataset.test())
        say(f"{self.teacher_file}, linear classifiers fitted on {len(images)} few-shot images (N = {shots})")
        with arithmetic(self.args.precision, self.device):
            say(diagnose(teacher, images).text())
        return 0

    def sweep(self) -> int:
        """Run the cells, distributed over the ranks; the leader prints the table when all are done."""
        with self.rank.leader_first():
            plan = self.plan()
            sweep = Sweep(plan, self.device)
        sweep.run()
        self.rank.wait()
        return 1 if self.rank.is_leader and summarize(plan) else 0

    def plan(self) -> Plan:
        args = self.args
        all_cells = [(shots, trial) for shots in sorted(set(args.nshot)) for trial in range(args.trials)]
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


if __name__ == "__main__":
    sys.exit(main())
