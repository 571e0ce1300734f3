"""How much faster than the plain procedure a cell runs, on the machine at hand.

    python -m benchmarks.speed --dataset CIFAR10 --nshot 10

The plain side (benchmarks/plain.py) is timed for a few epochs and one test evaluation per phase, and extrapolated
to the schedule; ours is a whole cell from reading the files on, but for TensorBoard. Prints a Markdown table and
writes JSON.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.plain import PlainProcedure
from data import fewshot
from data.datasets import open_dataset
from grafting.cell import Cell, Setting
from grafting.distillation import accuracy
from grafting.recipes import RECIPES, Recipe
from grafting.scions import scions
from grafting.store import StoredTeacher
from models import released
from models.vgg import frozen
from utils import files, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=list(RECIPES), default="CIFAR10")
    parser.add_argument("--nshot", type=int, default=10)
    parser.add_argument("--plain_epochs", type=int, default=3, help="training epochs of each phase timed plainly")
    parser.add_argument("--eval_every", type=int, default=20, help="as in train_fskd.py, for our side")
    parser.add_argument("--data_path", type=Path, default=Path("data/raw"))
    parser.add_argument("--teacher", type=Path, help="default: ckpt/teacher/vgg16-blockwise-<dataset>.pth")
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    recipe, device = RECIPES[args.dataset], machine.device_named(args.device)
    path = args.teacher or Path(f"ckpt/teacher/vgg16-blockwise-{args.dataset.lower()}.pth")

    ours = measure_ours(args, recipe, path, device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    plain = measure_plain(args, recipe, path, device)
    report = {
        "date": date.today().isoformat(), "machine": machine.description(device), "command": sys.argv[1:],
        "dataset": args.dataset, "shots": args.nshot, "plain": plain, "ours": ours, "peak_memory_bytes": peak,
        "ratio": sum(plain.values()) / sum(ours.values()),
    }  # fmt: skip
    name = f"speed-{args.dataset}-{args.nshot}shot-{device.type}-{report['date']}.json"
    files.write_json(args.output / name, report)
    sys.stdout.write(markdown(report) + "\n")


def measure_ours(args: argparse.Namespace, recipe: Recipe, path: Path, device: torch.device) -> dict[str, float]:
    """Seconds of a whole cell by part, everything included from the files on."""
    started = perf_counter()
    dataset = open_dataset(args.dataset, args.data_path)
    images = fewshot.subset(dataset, args.nshot, dataset.subset_seed, args.data_path)
    network = frozen(released.read_teacher(path, dataset.classes)).to(device, memory_format=torch.channels_last)
    budget = machine.free_memory(device) * 3 // 4
    teacher = StoredTeacher(network, dataset.normalization, dataset.test(), [images], budget)
    seconds = {"loading": lap(started)}
    started = perf_counter()
    accuracy(nn.Identity(), teacher.test_batches(len(network)))
    seconds["test features"] = lap(started)
    started = perf_counter()
    views = teacher.few_shot(images)
    seconds["store"] = lap(started)
    with tempfile.TemporaryDirectory() as folder:
        students = {kind: Path(folder) / f"{kind}.pth" for kind in ("stage 1", "best", "last")}
        hashes = files.sha256_of_file(path), files.sha256(images.tobytes())
        setting = Setting(args.dataset, args.nshot, 0, 0, dataset.subset_seed, *hashes, recipe)
        checkpoint = Path(folder) / "checkpoint.pt"
        cell = Cell(setting, teacher, views, args.eval_every, checkpoint, students, lambda phase, curve: None)
        cell.run()
    for phase, curve in cell.curves.items():
        seconds[f"{phase} training"] = curve.seconds["training"]
        seconds[f"{phase} test"] = curve.seconds["evaluation"]
    seconds["checkpoints"] = cell.saving_seconds
    return seconds


def lap(started: float) -> float:
    return perf_counter() - started


def measure_plain(args: argparse.Namespace, recipe: Recipe, path: Path, device: torch.device) -> dict[str, float]:
    """Seconds of a whole cell by part, extrapolated: median epoch and one evaluation, times the epochs."""
    started = perf_counter()
    dataset = open_dataset(args.dataset, args.data_path)
    images = fewshot.subset(dataset, args.nshot, dataset.subset_seed, args.data_path)
    procedure = PlainProcedure(released.read_teacher(path, dataset.classes), dataset, images, args.nshot, device)
    b0, b1, b2 = (s.to(device) for s in scions(procedure.teacher.architecture, dataset.classes, torch.Generator()))
    seconds = {"loading": lap(started)}
    for phase, parts in zip(recipe.phases, ((b0,), (b1,), (b2,), (b0, b1), (b0, b1, b2)), strict=True):
        row = nn.Sequential(*parts)
        optimizer = procedure.optimizer(phase, row)
        epochs = [procedure.training_epoch(phase, row, optimizer) for _ in range(args.plain_epochs)]
        seconds[f"{phase.name} training"] = statistics.median(epochs) * phase.epochs
        seconds[f"{phase.name} test"] = procedure.evaluation(phase, row) * phase.epochs
    return seconds


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, in seconds."""
    plain, ours = report["plain"], report["ours"]
    lines = [
        f"{report['dataset']}, {report['shots']}-shot, {report['machine']['threads']} threads,"
        f" torch {report['machine']['torch']}, {report['date']}; plain is extrapolated from a few epochs",
        "",
        "| part | plain, s | ours, s | ratio |",
        "| :--- | -------: | ------: | ----: |",
    ]
    for part in dict.fromkeys([*plain, *ours]):
        ratio = f"{plain[part] / ours[part]:.1f}" if plain.get(part) and ours.get(part) else "-"
        lines.append(f"| {part} | {_seconds(plain, part)} | {_seconds(ours, part)} | {ratio} |")
    lines.append(f"| **whole cell** | {sum(plain.values()):.1f} | {sum(ours.values()):.1f} | {report['ratio']:.1f} |")
    lines.append(f"\nPeak memory of ours: {report['peak_memory_bytes'] / 1e9:.2f} GB")
    return "\n".join(lines)


def _seconds(times: dict[str, float], part: str) -> str:
    return f"{times[part]:.1f}" if part in times else "-"


if __name__ == "__main__":
    main()
