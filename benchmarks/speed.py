"""How much faster a cell runs than with the plain procedure, and where its time goes, on this machine.

    python -m benchmarks.speed --dataset CIFAR10 --nshot 1 10

Ours is `train_fskd.py` with its default flags, one cell per process, from starting Python to the table. The plain
procedure (benchmarks/plain.py) is timed for a few epochs and one test accuracy per phase, and extrapolated to the
schedule: as released, with a test accuracy after every epoch of every phase, and with as many of them as ours. Prints
Markdown tables and writes JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acceleration.feature_cache import CachedTeacher
from benchmarks.plain import PlainProcedure
from data import fewshot
from data.datasets import ImageDataset, open_dataset
from data.views import IMAGE_SIZE, VIEWS
from experiments import results
from experiments.job import Job
from grafting.distillation import Distillation, distance, draw_views, train
from grafting.recipes import RECIPES, Phase, Recipe, batch_size
from grafting.scions import of_span, scions
from models import checkpoints
from models.vgg import BlockwiseVGG, frozen
from train_fskd import arguments
from utils import files, machine
from utils.arguments import DATA_PATH, positive
from utils.errors import BadInput
from utils.precision import arithmetic
from utils.text import markdown_table

TRAIN = Path(__file__).resolve().parent.parent / "train_fskd.py"
Seconds = dict[str, float]


def main() -> int:
    try:
        measure()
    except BadInput as error:
        sys.stderr.write(f"benchmarks.speed: {error}\n")
        return 2
    return 0


def measure() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=list(RECIPES), default="CIFAR10")
    parser.add_argument("--nshot", type=positive, nargs="+", default=[10])
    parser.add_argument("--plain_epochs", type=positive, default=3, help="timed epochs per phase, plain procedure")
    parser.add_argument("--step_epochs", type=positive, default=10, help="epochs of each phase whose steps are timed")
    parser.add_argument("--data_path", type=Path, default=DATA_PATH)
    parser.add_argument("--teacher", type=Path, help="default: as train_fskd.py")
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    files.require_writable(args.output)

    # first, while this process is small: the peak memory of a child process is at least its parent's size
    ours = {shots: measure_ours(args, shots) for shots in args.nshot}
    args.teacher = args.teacher or default_teacher(args.dataset, args.data_path)  # the cells have got it
    bench = Bench(args)
    plain = {shots: bench.measure_plain(shots) for shots in args.nshot}
    with arithmetic("tf32", bench.device):  # as in a cell
        steps = bench.measure_steps(args.nshot[-1])
    report = {
        "date": date.today().isoformat(),
        "machine": machine.description(bench.device),
        "command": sys.argv[1:],
        "dataset": args.dataset,
        "cells": [
            {
                "shots": shots,
                "plain": plain[shots],
                **ours[shots],
                "operations": bench.operations(shots),
            }
            for shots in args.nshot
        ],
        "test_accuracies": {phase.name: [test_accuracies(phase), phase.epochs] for phase in bench.recipe.phases},
        "steps_shots": args.nshot[-1],
        "steps": steps,
        "product_flops_per_second": bench.measure_product(),
    }
    files.write_json(args.output / f"speed-{args.dataset}-{bench.device.type}-{report['date']}.json", report)
    sys.stdout.write(markdown(report) + "\n")


def default_teacher(dataset: str, data_path: Path) -> Path:
    return Job(arguments(["--dataset", dataset, "--data_path", str(data_path)])).teacher_file


def test_accuracies(phase: Phase) -> int:
    """How many of them train_fskd.py measures in the phase by default."""
    return sum(phase.measures(epoch, None) for epoch in range(1, phase.epochs + 1))


def measure_ours(args: argparse.Namespace, shots: int) -> dict[str, Any]:
    """A cell in a separate process: seconds by part, and its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"--dataset": args.dataset, "--nshot": shots, "--trials": 1, "--data_path": args.data_path}
        flags |= {"--teacher": args.teacher, "--output_dir": folder, "--device": args.device}
        command = [str(word) for flag in flags.items() if flag[1] is not None for word in flag]
        started = perf_counter()
        process = subprocess.Popen([sys.executable, str(TRAIN), *command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        whole = perf_counter() - started
        if status:
            raise SystemExit(f"{TRAIN.name} {' '.join(command)} failed")
        result = results.read(results.path_of(Path(folder), shots, 0))
    seconds = {"test features": result["teacher"]["seconds"], "teacher features": result["seconds"]["features"]}
    for phase, curve in result["phases"].items():
        seconds[f"{phase} training"] = curve["seconds"]["training"]
        seconds[f"{phase} test"] = curve["seconds"]["evaluation"]
    seconds["stage 1 joined"] = result["stage1_joined"]["seconds"]
    seconds["saving"] = result["seconds"]["saving"]
    seconds["Python, files, curves"] = whole - sum(seconds.values())
    unit = 1 if sys.platform == "darwin" else 1024
    return {"ours": seconds, "peak_memory": usage.ru_maxrss * unit, "peak_gpu_memory": result["peak_gpu_memory"]}


class Bench:
    """What is timed in this process: the plain procedure, single steps, the machine itself."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = machine.device_named(args.device)
        self.recipe: Recipe = RECIPES[args.dataset]
        self.dataset: ImageDataset = open_dataset(args.dataset, args.data_path)
        self.architecture = self.teacher().architecture
        self.plain_tests: Seconds = {}

    def teacher(self) -> BlockwiseVGG:
        return checkpoints.read_teacher(self.args.teacher, self.dataset.classes)

    def subset(self, shots: int) -> Any:
        return fewshot.subset(self.dataset, shots, self.dataset.subset_seed, self.args.data_path)

    def scion(self, phase: Phase) -> nn.Sequential:
        """The phase's scion, fresh."""
        fresh = scions(self.architecture, self.dataset.classes, torch.Generator().manual_seed(0))
        return of_span(fresh, phase.span).to(self.device)

    def measure_plain(self, shots: int) -> Seconds:
        """Seconds by part of a whole cell as released: median epoch and one test accuracy, times the epochs."""
        warnings.filterwarnings("ignore", "This DataLoader will create")  # as many workers as released
        procedure = PlainProcedure(self.teacher(), self.dataset, self.subset(shots), shots, self.device)
        seconds = {}
        for phase in self.recipe.phases:
            scion = self.scion(phase)
            optimizer = procedure.optimizer(phase, scion)
            epochs = [procedure.training_epoch(phase, scion, optimizer) for _ in range(self.args.plain_epochs)]
            if phase.name not in self.plain_tests:  # the same for every N
                self.plain_tests[phase.name] = procedure.evaluation(phase, scion)
            seconds[f"{phase.name} training"] = statistics.median(epochs) * phase.epochs
            seconds[f"{phase.name} test"] = self.plain_tests[phase.name] * phase.epochs
        return seconds

    def measure_steps(self, shots: int) -> dict[str, Seconds]:
        """Median seconds of an epoch's steps by phase: ours, and the network itself on prepared tensors."""
        network, images = frozen(self.teacher()).to(self.device, memory_format=torch.channels_last), self.subset(shots)
        memory = machine.memory_to_use(self.device)
        teacher = CachedTeacher(network, self.dataset.normalization, self.dataset.test(), [images], memory)
        views = teacher.few_shot(images)
        order, view = (drawn.to(self.device) for drawn in draw_views(len(images), "speed"))
        found = {}
        for phase in self.recipe.phases:
            run, bare = (Distillation(phase, self.scion(phase), shots) for _ in range(2))
            step, graft = run.step_for(teacher, views), bare.scion_and_tail(teacher)
            batches = [
                (views.features(phase.span[0], chosen, view_of), views.logits(chosen, view_of))
                for chosen, view_of in zip(*(drawn.split(batch_size(shots)) for drawn in (order, view)), strict=True)
            ]

            def ours(step=step):
                train(step, order, view, batch_size(shots))

            def on_prepared_tensors(adam=bare.optimizer, graft=graft, batches=batches):
                for features, logits in batches:
                    adam.zero_grad()
                    distance(graft(features), logits).backward()
                    adam.step()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()

            seconds = in_turn([ours, on_prepared_tensors], self.args.step_epochs)
            found[phase.name] = dict(zip(("ours", "bare"), seconds, strict=True))
        return found

    def operations(self, shots: int) -> dict[str, float]:
        """Additions and multiplications of a cell's parts, as their layers define them."""
        network, phases = frozen(self.teacher()), self.recipe.phases
        image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        grafts = {p: nn.Sequential(self.scion(p).cpu(), network[p.span[1] :]) for p in phases}
        features = {p: network[: p.span[0]](image) for p in phases}
        images, tests, last = shots * self.dataset.classes, len(self.dataset.test().labels), phases[-1]
        return {
            "teacher features": images * VIEWS * flops(network, image),
            "test features": tests * flops(network, image),
            "training": sum(p.epochs * images * flops(grafts[p], features[p], backward=True) for p in phases),
            f"{last.name} test": last.epochs * tests * flops(grafts[last], features[last]),
        }

    def measure_product(self) -> float:
        """Operations per second of a large matrix product in float32."""
        factor = torch.randn(2048, 2048, device=self.device)
        (seconds,) = in_turn([lambda: (factor @ factor)[0, 0].item()], self.args.step_epochs)
        return 2 * 2048**3 / seconds


def in_turn(acts: list[Callable[[], None]], rounds: int, in_a_row: int = 1) -> list[float]:
    """Median seconds of each act. In turn, so that a busy moment affects all; the first round does not count."""
    taken: list[list[float]] = [[] for _ in acts]
    for counted in (False, *[True] * rounds):
        for act, seconds in zip(acts, taken, strict=True):
            of_round = [timed(act) for _ in range(in_a_row)]
            seconds += of_round if counted else []
    return [statistics.median(seconds) for seconds in taken]


def timed(act: Callable[[], None]) -> float:
    started = perf_counter()
    act()
    return perf_counter() - started


def flops(network: nn.Module, features: Tensor, backward: bool = False) -> int:
    """Additions and multiplications of the forward pass, and of the backward pass if wanted."""
    with FlopCounterMode(display=False) as counter:
        output = network(features)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables: cells, the parts of each beside their operations, training steps."""
    counts = report["test_accuracies"]
    parts = [
        f"{report['dataset']}, {report['machine']['device_type']}, {report['machine']['threads']} threads,"
        f" torch {report['machine']['torch']}, {report['date']}; plain is extrapolated from a few epochs: as released,"
        f" with {sum(released for _, released in counts.values())} test accuracies, and with"
        f" {sum(ours for ours, _ in counts.values())}, as ours",
        table(
            "N | as released, s | as many test accuracies, s | ours, s | ratio to released | ratio | memory, GB",
            (cell_line(cell, counts) for cell in report["cells"]),
        ),
    ]
    for cell in report["cells"]:
        shots, plain, ours = cell["shots"], cell["plain"], cell["ours"]
        lines = []
        for part, seconds in ours.items():
            plainly, ratio = (f"{plain[part]:,.1f}", f"{plain[part] / seconds:.1f}") if part in plain else ("-", "-")
            lines.append(f"{part} | {plainly} | {seconds:.1f} | {seconds / sum(ours.values()):.1%} | {ratio}")
        parts.append(table(f"part, N = {shots} | as released, s | ours, s | of ours | ratio", lines))
        lines = []
        for what, operations in cell["operations"].items():
            taken = sum(seconds for part, seconds in ours.items() if part.endswith(what))
            by_products = operations / report["product_flops_per_second"]
            lines.append(f"{what} | {operations / 1e12:.1f} | {taken:.1f} | {by_products:.1f}")
        parts.append(
            table(f"N = {shots} | TFLOP, as the layers define it | ours, s | as large products in float32, s", lines)
        )
    steps = [
        f"{phase} | {1e3 * step['bare']:.1f} | {1e3 * step['ours']:.1f} | {step['ours'] / step['bare']:.2f}"
        for phase, step in report["steps"].items()
    ]
    head = f"an epoch's steps, N = {report['steps_shots']} | the network on prepared tensors, ms | ours, ms | ratio"
    return "\n\n".join([*parts, table(head, steps)])


def cell_line(cell: dict[str, Any], counts: dict[str, list[int]]) -> str:
    """counts: by phase, the test accuracies of a cell: ours, as released."""
    released, ours = sum(cell["plain"].values()), sum(cell["ours"].values())
    alike = sum(
        cell["plain"][f"{phase} training"] + cell["plain"][f"{phase} test"] * count / count_released
        for phase, (count, count_released) in counts.items()
    )
    memory = (cell["peak_gpu_memory"] or cell["peak_memory"]) / 1e9
    return (
        f"{cell['shots']} | {released:,.0f} | {alike:,.0f} | {ours:,.1f} | {released / ours:.1f} | {alike / ours:.1f}"
        f" | {memory:.2f}"
    )


def table(head: str, lines: Iterable[str]) -> str:
    """A Markdown table of lines like "a | 1 | 2", numbers aligned to the right."""
    first, *others = head.split(" | ")
    return markdown_table([[first, *others], [":-", *["-:"] * len(others)], *(line.split(" | ") for line in lines)])


if __name__ == "__main__":
    sys.exit(main())
