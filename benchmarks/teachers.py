"""Trains, diagnoses and grafts a family of teachers; benchmarks/law.py fits its rule to them.

    python -m benchmarks.teachers
    python -m benchmarks.teachers --dataset CIFAR10 --nshot 1 10 --trials 1 --output_dir runs/CIFAR10

The first trains Shapes10's FAMILY in runs/law, diagnoses each teacher and runs its cells. The second, with the flags of
train_fskd.py, does so for one teacher at hand; cells whose results are in --output_dir are not run again. Each teacher
gives one small file in benchmarks/results/law. Both continue where they were interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from data import fewshot
from experiments import results
from experiments.commands import require_sweep
from experiments.diagnosis import diagnose
from experiments.job import Job, say
from experiments.sweep import results_of, run
from grafting.recipes import SHAPES10
from grafting.teacher import FrozenTeacher
from models import checkpoints
from models.balancing import rescale
from models.teacher_recipe import TeacherRecipe
from models.teacher_training import train_teacher
from models.vgg import ARCHITECTURES
from train_fskd import arguments
from utils import files, machine
from utils.errors import BadInput
from utils.precision import arithmetic

WORK, MEASURED = Path("runs/law"), Path("benchmarks/results/law")
CELLS = ["--nshot", "1", "10", "--trials", "2"]
PROBE_SHOTS = 10


@dataclass(frozen=True)
class Member:
    """A teacher of Shapes10. recipe: how it is trained, from `source`, another member, if there is one.

    Without a recipe, it is `source` with block 2's output multiplied by `factor`, a power of two.
    """

    name: str
    recipe: TeacherRecipe | None = None
    source: str | None = None
    factor: float = 1.0


QUICK, FURTHER = SHAPES10.teachers["quick"], SHAPES10.teachers["further"]
PROTOTYPES_1 = replace(QUICK, prototype_head=1.0)
FAMILY = (
    Member("quick", QUICK),
    Member("without-heads", replace(QUICK, linear_head=0.0, prototype_head=0.0, balanced=False)),
    Member("quick-28-epochs", replace(QUICK, epochs=28)),
    Member("prototypes-1", PROTOTYPES_1),
    Member("prototypes-1-scaled-1-16", source="prototypes-1", factor=2.0**-4),
    Member("prototypes-1-5-epochs", replace(PROTOTYPES_1, epochs=5)),
    Member("without-heads-further", replace(FURTHER, epochs=5), "without-heads"),
    Member("quick-28-epochs-scaled-1-16", source="quick-28-epochs", factor=2.0**-4),
    Member("linear-head", replace(QUICK, prototype_head=0.0)),
    Member("without-heads-scaled-1-16", source="without-heads", factor=2.0**-4),
    Member("prototypes-1-scaled-4", source="prototypes-1", factor=2.0**2),
)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        measure_given(argv) if argv else measure_family()
    except BadInput as error:
        sys.stderr.write(f"benchmarks.teachers: {error}\n")
        return 2
    return 0


def measure_given(argv: Sequence[str]) -> None:
    """Measure the teacher of a command line of train_fskd.py."""
    args = arguments(argv)
    require_sweep(args)
    if (args.method, args.optimize_span, args.best_of) != ("grafting", "front", None):
        raise BadInput("--method, --optimize_span and --best_of: leave them out; the cells are those of the paper")
    job = Job(args)
    if (measured := MEASURED / f"{job.output_dir.name}.json").exists():
        raise BadInput(f"{measured}: exists already; remove it to measure again, or name another --output_dir")
    measure(job, job.output_dir.name, {})


def measure_family() -> None:
    """Make and measure those of FAMILY that are not measured yet."""
    for member in FAMILY:
        if (measured := MEASURED / f"{member.name}.json").exists():
            say(f"{member.name}: has been measured; remove {measured} to measure it again")
        else:
            measure_member(member)


def measure_member(member: Member) -> None:
    """Make the teacher if it is not there, and measure it."""
    folder = WORK / member.name
    file = teacher_file(member.name)
    flags = ["--dataset", "Shapes10", "--teacher", str(file), "--output_dir", str(folder)]
    job = Job(arguments([*flags, *CELLS]))
    file.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(file.with_name(f".{file.stem}.lock")):  # another process may be making it
        if not file.exists():
            say(f"{member.name}: making the teacher")
            make(member, job, file)
    measure(job, member.name, {**asdict(member), "recipe": member.recipe and asdict(member.recipe)})


def teacher_file(name: str) -> Path:
    return WORK / name / "teacher.pth"


def make(member: Member, job: Job, file: Path) -> None:
    """Train the member's teacher, or rescale its source's."""
    source = member.source and teacher_file(member.source)
    if member.recipe:
        start = source or ARCHITECTURES[job.architecture]
        train_teacher(job.dataset, start, member.recipe, job.args.seed, job.device, file, say)
    else:
        network = checkpoints.read_teacher(source, job.dataset.classes)
        rescale(network, member.factor)
        checkpoints.write_teacher(network, file)


def measure(job: Job, name: str, made: dict[str, Any]) -> None:
    """Diagnose a teacher, run its cells, and write both. Raises BadInput if a cell has no student."""
    images = fewshot.subset(job.dataset, PROBE_SHOTS, job.subset_seed, job.args.data_path)
    plan = job.plan()
    if run([plan], job.device):
        raise BadInput(f"{name}: not measured, since a cell failed ({job.output_dir / 'results'})")
    if len(results_of(plan)) < len(plan.cells):
        raise BadInput(f"{name}: not measured, since another process is running a cell; repeat when it has ended")
    say(f"{name}: diagnosing")
    with arithmetic(job.args.precision, job.device):
        teacher = FrozenTeacher(job.frozen_teacher(), job.dataset.normalization, job.dataset.test())
        found = diagnose(teacher, images)
    content = {
        "dataset": job.name,
        "teacher": {"accuracy": found.teacher, "weights_sha256": checkpoints.weights_sha256(teacher.network), **made},
        "blocks": [asdict(block) for block in found.blocks],
        "cells": [compact(result) for result in results_of(plan)],
        "machine": machine.description(job.device),
    }
    files.write_json(MEASURED / f"{name}.json", content)
    say(f"{name}: measured, {MEASURED / name}.json")


def compact(result: results.Result) -> dict[str, float]:
    """The cell, and the test accuracies (%) of its teacher, of B0's last epoch and of the student's best and last."""
    setting = result["setting"]
    return {
        "shots": setting["shots"],
        "trial": setting["trial"],
        "teacher": result["teacher"]["accuracy"],
        "B0": result["phases"]["B0"]["last"],
        "best": result["best"],
        "last": result["last"],
    }


if __name__ == "__main__":
    sys.exit(main())
