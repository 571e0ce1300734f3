"""Training steps as matrix products (acceleration/winograd.py) beside the network itself, on this machine's CPU.

    python -m benchmarks.steps --batch 6 12 19 32 64 128

Times whole steps (forward, backward, Adam) of VGG16's grafts at 100 classes, with random weights and features: as the
network itself and as matrix products, in turn. Prints a Markdown table.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from acceleration.winograd import WINOGRAD_FROM, as_matrix_products
from data.datasets import open_dataset
from deployment.evaluation import medians_in_turn
from grafting.distillation import Distillation, distance
from grafting.recipes import CIFAR100, Phase
from grafting.scions import scions
from grafting.teacher import FrozenTeacher
from models.networks import NETWORKS, initialize
from utils.text import markdown_table

CLASSES = 100
ROUNDS = 4  # in which each of the two runs IN_A_ROW steps, so that its weights are in the processor's cache
IN_A_ROW = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[6, 12, 19, 32, 64, 128])
    args = parser.parse_args()
    networks = NETWORKS["vgg16"]
    network = initialize(networks.teacher(CLASSES), torch.Generator().manual_seed(0))
    teacher = FrozenTeacher(network, networks, open_dataset("Shapes10", Path()))  # for the size of the images
    phases = replace(CIFAR100, blocks=networks.grafted).phases
    lines = []
    for batch in args.batch:
        for phase in (phase for phase in phases if phase.span[0] < networks.last):  # the last block is the classifier
            acts = [prepared_steps(teacher, phase, [batch], products) for products in (False, True)]
            itself, as_products = medians_in_turn(acts, ROUNDS, IN_A_ROW)
            times = f"{1e3 * itself:.1f} | {1e3 * as_products:.1f} | {itself / as_products:.2f}"
            lines.append(f"{batch} | {phase.name} | {times}")
    head = f"images (Winograd from {WINOGRAD_FROM} on) | graft | network, ms | products, ms | ratio"
    sys.stdout.write(table(head, lines) + "\n")


def prepared_steps(
    teacher: FrozenTeacher, phase: Phase, sizes: list[int], products: bool = False
) -> Callable[[], None]:
    """Training steps on random features and logits, one for each batch size.

    products: of the network as matrix products.
    """
    start, _ = phase.span
    distillation = Distillation(phase, fresh_scion(teacher, phase), shots=10)
    network = distillation.scion_and_tail(teacher)
    if products:
        network = as_matrix_products(network, teacher.shapes[start][-1])
    shapes = teacher.shapes[start], (teacher.classes,)
    batches = [[torch.rand(size, *shape, device=teacher.device) for shape in shapes] for size in sizes]

    def act() -> None:
        for features, logits in batches:
            distillation.optimizer.zero_grad()
            loss = distance(network(features), logits)
            loss.backward()
            distillation.optimizer.step()
        loss.item()  # waits for the device

    return act


def fresh_scion(teacher: FrozenTeacher, phase: Phase) -> nn.Sequential:
    """The phase's scion, freshly initialised, in training mode on the teacher's device."""
    i, j = (block - teacher.networks.first for block in phase.span)
    return nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0))[i:j]).to(teacher.device).train()


def table(head: str, lines: Iterable[str]) -> str:
    """A Markdown table of lines like "a | 1 | 2", numbers aligned to the right."""
    first, *others = head.split(" | ")
    return markdown_table([[first, *others], [":-", *["-:"] * len(others)], *(line.split(" | ") for line in lines)])


if __name__ == "__main__":
    main()
