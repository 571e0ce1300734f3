"""How fast everything is on a GPU, in one command that needs no data set and no teacher's file.

    python -m benchmarks.gpu --output gpu

Runs the tests of what is different on a GPU, training steps in the forms of benchmarks/steps.py, CIFAR10's and
CIFAR100's cells at N = 10, three cells in one process and in three, and 20 epochs of the teacher recipes. Images and
teachers are random: times do not depend on their values, and accuracies mean nothing. Each part is printed and written
to gpu.json in the output folder as soon as it is done. Ends with status 1 if a test failed.
`--reduced` does the same with few images and a small network, on any device, to see that all parts run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from acceleration.cuda_graphs import WARM_UP
from benchmarks.speed import table
from benchmarks.steps import FORMS, step
from data.datasets import ImageDataset, LabelledImages
from data.views import VIEWS, Normalization
from experiments import results
from experiments.plan import Plan
from experiments.sweep import Sweep
from grafting.recipes import RECIPES, Recipe, batch_size
from models import checkpoints, teacher_training
from models.teacher_recipe import stretched
from models.vgg import ARCHITECTURES, BlockwiseVGG, frozen, initialize
from utils import files, machine
from utils.errors import BadInput
from utils.precision import arithmetic

ROOT = Path(__file__).resolve().parent.parent
START_METHOD = "spawn"  # as CUDA needs it
TESTS_STATUS = "tests, exit status"
CLASSES = {"CIFAR10": 10, "CIFAR100": 100}


@dataclass(frozen=True)
class Size:
    """How much is measured. epochs: of each phase of a cell, None for the recipe's. steps: how many are timed."""

    datasets: tuple[str, ...]
    architecture: str
    shots: int
    train_images: int
    test_images: int
    epochs: int | None
    teacher_epochs: int
    steps: int
    tests: tuple[str, ...]


TESTS = ("acceleration", "utils/test_precision.py")
FULL = Size(("CIFAR10", "CIFAR100"), "vgg16", 10, 50_000, 10_000, None, 20, 500, TESTS)
REDUCED = Size(("CIFAR10",), "vgg11-small", 1, 200, 100, 1, 1, 2, ("acceleration/test_cuda_graphs.py",))


def main() -> int:
    try:
        return measure()
    except BadInput as error:
        sys.stderr.write(f"benchmarks.gpu: {error}\n")
        return 2


def measure() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--output", type=Path, default=Path("gpu"))
    parser.add_argument("--reduced", action="store_true", help="a little of everything, with a small network")
    args = parser.parse_args()
    size = REDUCED if args.reduced else FULL
    files.require_writable(args.output)
    report: dict[str, Any] = {"machine": machine.description(machine.device_named(args.device)), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for part in (tests, steps, cells, processes, teachers):
            rows = part(size, args.device, Path(folder))
            report["rows"] += rows
            files.write_json(args.output / "gpu.json", report)
            for what, value, unit in rows:
                sys.stdout.write(f"{what}: {value:,.2f} {unit}\n")
            sys.stdout.flush()
    sys.stdout.write(markdown(report) + "\n")
    return 1 if any(what == TESTS_STATUS and value for what, value, _ in report["rows"]) else 0


Row = tuple[str, float, str]  # what, value, unit


def tests(size: Size, _device: str | None, _folder: Path) -> list[Row]:
    """Those of the code that differs on a GPU. They take one if there is one."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *(str(ROOT / "tests" / name) for name in size.tests)]
    started = perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]
    return [(TESTS_STATUS, done.returncode, ""), (f"tests: {last}", perf_counter() - started, "s")]


def steps(size: Size, device: str | None, _folder: Path) -> list[Row]:
    """A step of B0 and of L=3 of the last data set, in each form, on features that are there already."""
    name, chosen = size.datasets[-1], machine.device_named(device)
    teacher = frozen(random_teacher(size, name)).to(chosen, memory_format=torch.channels_last)
    batch, rows = batch_size(size.shots), []
    for phase in (RECIPES[name].phases[0], RECIPES[name].phases[-1]):
        for form in FORMS:
            with arithmetic("tf32", chosen):
                act = step(teacher, phase, batch, form)
                in_a_row(act, WARM_UP + 1, chosen)
                milliseconds = 1e3 * in_a_row(act, size.steps, chosen) / size.steps
            rows.append((f"{name}, {batch} images: a step of {phase.name}, network {form}", milliseconds, "ms"))
    return rows


def in_a_row(act: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of so many calls."""
    started = perf_counter()
    for _ in range(count):
        act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - started


def cells(size: Size, device: str | None, folder: Path) -> list[Row]:
    """One cell of each data set, in a process of its own, and its parts."""
    rows: list[Row] = []
    for name in size.datasets:
        whole = timed_sweeps(size, name, device, folder / f"{name}-cell", trials=1, count=1)
        result = results.read(results.path_of(folder / f"{name}-cell", size.shots, 0))
        views = size.shots * CLASSES[name] * VIEWS
        cell = f"{name}, N = {size.shots}"
        rows += [
            (f"{cell}: a cell, from starting Python to the table", whole, "s"),
            (f"{cell}: test features and the teacher's accuracy", result["teacher"]["seconds"], "s"),
            (f"{cell}: cache of teacher features", result["seconds"]["features"], "s"),
            (f"{cell}: cache of teacher features, per view", 1e6 * result["seconds"]["features"] / views, "µs"),
            (f"{cell}: training", result["seconds"]["training"], "s"),
            (f"{cell}: test accuracies", result["seconds"]["evaluation"], "s"),
            (f"{cell}: peak GPU memory", (result["peak_gpu_memory"] or 0) / 1e9, "GB"),
        ]
    return rows


def processes(size: Size, device: str | None, folder: Path) -> list[Row]:
    """Three cells of the first data set, one after the other in one process, and by three processes."""
    name = size.datasets[0]
    return [
        (
            f"{name}, N = {size.shots}: three cells, {count} process{'es' if count > 1 else ''}",
            timed_sweeps(size, name, device, folder / f"{name}-{count}", trials=3, count=count),
            "s",
        )
        for count in (1, 3)
    ]


def teachers(size: Size, device: str | None, folder: Path) -> list[Row]:
    """An epoch of each teacher recipe of the first data set."""
    name = size.datasets[0]
    dataset = dataset_of(size, name)  # drawn before the clock runs
    rows: list[Row] = []
    for recipe in (RECIPES[name].teachers[r] for r in ("published", "quick")):
        started = perf_counter()
        teacher_training.train_teacher(
            dataset,
            ARCHITECTURES[size.architecture],
            stretched(recipe, size.teacher_epochs),
            0,
            machine.device_named(device),
            folder / f"{recipe.name}.pth",
            lambda line: None,
        )
        seconds = (perf_counter() - started) / size.teacher_epochs
        rows.append((f"{size.architecture}, recipe {recipe.name}: an epoch of {size.teacher_epochs}", seconds, "s"))
    return rows


def timed_sweeps(size: Size, name: str, device: str | None, output: Path, trials: int, count: int) -> float:
    """Seconds that `count` processes take for a sweep of so many trials. Raises SystemExit if one of them fails."""
    checkpoints.write_teacher(random_teacher(size, name), output / "teacher.pth")
    started = perf_counter()
    context = multiprocessing.get_context(START_METHOD)
    workers = [context.Process(target=sweep, args=(size, name, device, output, trials, count)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit(f"a sweep of {name} failed")
    return perf_counter() - started


def sweep(size: Size, name: str, device: str | None, output: Path, trials: int, count: int) -> None:
    """One process's part of a sweep: each takes the next cell that no other has taken."""
    chosen, dataset, teacher = machine.device_named(device), dataset_of(size, name), output / "teacher.pth"
    plan = Plan(
        dataset=dataset,
        recipe=recipe_of(size, name),
        teacher=checkpoints.read_teacher(teacher, dataset.classes),
        teacher_file=teacher,
        cells=tuple((size.shots, trial) for trial in range(trials)),
        seed=0,
        subset_seed=dataset.subset_seed,
        precision="tf32",
        eval_every=None,
        data_path=output,
        output_dir=output,
        student_dir=output / "student",
        memory=machine.memory_to_use(chosen, count, device),
        fresh=False,
        report=lambda line: None,
    )
    Sweep(plan, chosen).run()


def random_teacher(size: Size, name: str) -> BlockwiseVGG:
    network = BlockwiseVGG(ARCHITECTURES[size.architecture], CLASSES[name])
    return initialize(network, torch.Generator().manual_seed(0))


def recipe_of(size: Size, name: str) -> Recipe:
    """The data set's recipe; where `size` says so, with fewer epochs."""
    recipe = RECIPES[name]
    if size.epochs is None:
        return recipe
    shortened = ((replace(phase, epochs=size.epochs) for phase in stage) for stage in (recipe.stage1, recipe.stage2))
    stage1, stage2 = map(tuple, shortened)
    return replace(recipe, stage1=stage1, stage2=stage2)


@cache
def dataset_of(size: Size, name: str) -> ImageDataset:
    """Random images of the same size as the data set's, for as many classes; how many, `size` says."""
    random, classes = np.random.default_rng(0), CLASSES[name]
    train, test = (
        LabelledImages(random.integers(0, 256, (count, 3, 32, 32), np.uint8), np.arange(count) % classes)
        for count in (size.train_images, size.test_images)
    )
    names = tuple(map(str, range(classes)))
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return ImageDataset(name, classes, normalization, 6, False, lambda: train, lambda: test, lambda: names)


def markdown(report: dict[str, Any]) -> str:
    """The rows as one table."""
    there = report["machine"]
    head = f"{there['device']} ({there['device_type']}), torch {there['torch']}"
    return table(f"{head} | value | unit", (f"{what} | {value:,.2f} | {unit}" for what, value, unit in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
