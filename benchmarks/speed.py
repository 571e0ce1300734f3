"""How much faster a cell runs than with the plain procedure, and where its time goes, on this machine.
Takes the flags of train_fskd.py too: data, teacher, device, precision.

    python -m benchmarks.speed --dataset CIFAR10 --nshot 1 10

Ours is `train_fskd.py`, one cell per process, from starting Python to the table. The plain procedure
(benchmarks/plain.py) is timed for a few epochs and one test accuracy per phase, and extrapolated to the schedule: as
released, with a test accuracy after every epoch of every phase, and with as many of them as ours. Prints Markdown
tables and writes JSON.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import train_fskd
from acceleration.feature_cache import CachedTeacher
from benchmarks import plain
from benchmarks.steps import fresh_scion, prepared_steps, table
from deployment.evaluation import medians_in_turn
from experiments import results
from experiments.commands import require_sweep
from experiments.job import Job
from grafting.distillation import Distillation, draw_views, train
from grafting.recipes import batch_size
from utils import files, machine
from utils.argument_types import positive
from utils.errors import BadInput
from utils.precision import arithmetic, cache_dtype

Seconds = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser("benchmarks.speed", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--nshot", type=positive, nargs="+", default=[10], help="shots: images per class (default: 10)")
    add("--plain_epochs", type=positive, default=3, help="timed epochs per phase, plain procedure (default: 3)")
    add("--step_epochs", type=positive, default=10, help="epochs of each phase whose steps are timed (default: 10)")
    add("--output", type=Path, default=Path("benchmarks/results"), help="folder for the JSON file")
    args, flags = parser.parse_known_args(argv)
    try:
        job = Job(train_fskd.arguments(flags))
        require_sweep(job.args)
        if job.args.method != "grafting" or job.args.start != "fresh":
            raise BadInput("--method and --start: leave them out; the plain procedure is grafting's, from fresh blocks")
        files.require_writable(args.output)
        report = measure(args, flags, job)
        files.write_json(args.output / f"speed-{job.name}-{job.device.type}-{report['date']}.json", report)
    except BadInput as error:
        sys.stderr.write(f"benchmarks.speed: {error}\n")
        return 2
    sys.stdout.write(markdown(report) + "\n")
    return 0


def measure(args: argparse.Namespace, flags: Sequence[str], job: Job) -> dict[str, Any]:
    """What is written. flags: of train_fskd.py. job: made from them; it must not have read any data yet."""
    # first, while this process is small: the peak memory of a child process is at least its parent's size
    ours = {shots: time_cell([train_fskd.__file__, *flags], shots) for shots in args.nshot}
    released = plain_seconds(job, args.nshot, args.plain_epochs)
    with arithmetic(job.args.precision, job.device):  # as in a cell
        steps = step_seconds(job, args.nshot[-1], args.step_epochs)
    return {
        "date": date.today().isoformat(),
        "machine": machine.description(job.device),
        "command": sys.argv[1:],
        "dataset": job.name,
        "cells": [{"shots": n, "plain": released[n], **ours[n]} for n in args.nshot],
        "test_accuracies": {
            phase.name: [sum(phase.measures(epoch + 1, job.args.eval_every) for epoch in range(n)), n]
            for phase, n in ((phase, phase.epochs) for phase in job.method.phases(job.recipe))
        },
        "steps_shots": args.nshot[-1],
        "steps": steps,
    }


def time_cell(words: Sequence[str], shots: int) -> dict[str, Any]:
    """A cell in a process of its own, `python` with these words: seconds by part, peak memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *words, "--nshot", str(shots), "--trials", "1", "--output_dir", folder]
        started = perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        whole = perf_counter() - started
        if status:
            raise BadInput(f"{' '.join(command)}: failed")
        result = results.read(results.path_of(Path(folder), shots, 0))
    seconds = {"test features": result["teacher"]["seconds"], "teacher features": result["seconds"]["features"]}
    for phase, curve in result["phases"].items():
        seconds[f"{phase} training"] = curve["seconds"]["training"]
        seconds[f"{phase} test"] = curve["seconds"]["evaluation"]
    seconds |= {"stage 1 joined": result["stage1_joined"]["seconds"], "saving": result["seconds"]["saving"]}
    seconds["Python, files, curves"] = whole - sum(seconds.values())
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"ours": seconds, "peak_memory": peak, "peak_gpu_memory": result["peak_gpu_memory"]}


def plain_seconds(job: Job, all_shots: Sequence[int], timed_epochs: int) -> dict[int, Seconds]:
    """By N, seconds by part of a whole cell as released: median epoch and one test accuracy, times the epochs."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # as many workers as released
    teacher, test_seconds = job.frozen_teacher(), {}
    blocks = copy.deepcopy(teacher.blocks).to(memory_format=torch.contiguous_format)
    found: dict[int, Seconds] = {shots: {} for shots in all_shots}
    for shots, seconds in found.items():
        training, test = plain.loaders(job.dataset, job.subset(shots), shots)
        for phase in job.method.phases(job.recipe):
            scion = fresh_scion(teacher, phase)
            epochs = [plain.training_epoch(blocks, scion, phase, shots, training) for _ in range(timed_epochs)]
            if phase.name not in test_seconds:  # the same for every N
                test_seconds[phase.name] = plain.evaluation(blocks, scion, phase, test)
            seconds[f"{phase.name} training"] = statistics.median(epochs) * phase.epochs
            seconds[f"{phase.name} test"] = test_seconds[phase.name] * phase.epochs
    return found


def step_seconds(job: Job, shots: int, timed_epochs: int) -> dict[str, Seconds]:
    """Median seconds of an epoch's steps by phase: ours, and the network itself on prepared tensors."""
    images, dtype = job.subset(shots), cache_dtype(job.args.precision)
    teacher = CachedTeacher(job.network, job.networks, job.dataset, [images], job.memory, dtype)
    inputs, batch = teacher.inputs(images), batch_size(shots)
    order, view = (drawn.to(job.device) for drawn in draw_views(inputs, len(inputs), "speed"))
    sizes, found = [len(images) for images in order.split(batch)], {}
    for phase in job.method.phases(job.recipe):
        step = Distillation(phase, fresh_scion(teacher, phase), shots).step_on(inputs)
        acts = [partial(train, step, order, view, sizes), prepared_steps(teacher, phase, sizes)]
        found[phase.name] = dict(zip(("ours", "bare"), medians_in_turn(acts, timed_epochs), strict=True))
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables: cells, the parts of each beside their operations, training steps."""
    counts, there = report["test_accuracies"], report["machine"]
    mine, theirs = map(sum, zip(*counts.values(), strict=True))
    parts = [
        f"{report['dataset']}, {there['device']}, {there['threads']} threads, torch {there['torch']}, {report['date']};"
        f" plain is extrapolated from a few epochs: with {theirs} test accuracies, as released, and with {mine}",
        table(
            "N | as released, s | as many test accuracies, s | ours, s | ratio to released | ratio | memory, GB",
            (cell_line(cell, counts) for cell in report["cells"]),
        ),
    ]
    for cell in report["cells"]:
        shots, released, ours = cell["shots"], cell["plain"], cell["ours"]
        lines = []
        for part, seconds in ours.items():
            plainly = f"{released[part]:,.1f}" if part in released else "-"
            ratio = f"{released[part] / seconds:.1f}" if part in released else "-"
            lines.append(f"{part} | {plainly} | {seconds:.1f} | {seconds / sum(ours.values()):.1%} | {ratio}")
        parts.append(table(f"part, N = {shots} | as released, s | ours, s | of ours | ratio", lines))
    head = f"an epoch's steps, N = {report['steps_shots']} | the network on prepared tensors, ms | ours, ms | ratio"
    steps = (
        f"{phase} | {1e3 * step['bare']:.1f} | {1e3 * step['ours']:.1f} | {step['ours'] / step['bare']:.2f}"
        for phase, step in report["steps"].items()
    )
    return "\n\n".join([*parts, table(head, steps)])


def cell_line(cell: dict[str, Any], counts: dict[str, list[int]]) -> str:
    """counts: by phase, the test accuracies of a cell: ours, as released."""
    released, ours = sum(cell["plain"].values()), sum(cell["ours"].values())
    alike = sum(
        cell["plain"][f"{phase} training"] + cell["plain"][f"{phase} test"] * count / count_released
        for phase, (count, count_released) in counts.items()
    )
    memory = (cell["peak_gpu_memory"] or cell["peak_memory"]) / 1e9
    ratios = f"{released / ours:.1f} | {alike / ours:.1f}"
    return f"{cell['shots']} | {released:,.0f} | {alike:,.0f} | {ours:,.1f} | {ratios} | {memory:.2f}"


if __name__ == "__main__":
    sys.exit(main())
