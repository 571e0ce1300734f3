"""Training steps as matrix products (acceleration/winograd.py) beside the network itself, on this machine.

    python -m benchmarks.steps --batch 6 12 19 32 64 128

Times whole steps (forward, backward, Adam) of VGG16's grafts at 100 classes, with random weights and features: as the
network itself and as matrix products, in turn. Prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import nn

from acceleration.winograd import WINOGRAD_FROM, as_matrix_products
from benchmarks.speed import in_turn, table
from data.views import IMAGE_SIZE
from grafting.distillation import Distillation, distance
from grafting.recipes import CIFAR100, Phase
from grafting.scions import of_span, scions
from models.vgg import ARCHITECTURES, BlockwiseVGG, frozen, initialize

CLASSES = 100
ROUNDS = 4  # in which each of the two runs IN_A_ROW steps, so that its weights are in the processor's cache
IN_A_ROW = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[6, 12, 19, 32, 64, 128])
    args = parser.parse_args()
    teacher = frozen(initialize(BlockwiseVGG(ARCHITECTURES["vgg16"], CLASSES), torch.Generator().manual_seed(0)))
    lines = []
    for batch in args.batch:
        for phase in (CIFAR100.phases[i] for i in (0, 1, 3, 4)):
            acts = [step(teacher, phase, batch, as_products) for as_products in (False, True)]
            itself, products = in_turn(acts, ROUNDS, IN_A_ROW)
            lines.append(
                f"{batch} | {phase.name} | {1e3 * itself:.1f} | {1e3 * products:.1f} | {itself / products:.2f}"
            )
    head = f"images (Winograd from {WINOGRAD_FROM} on) | graft | network, ms | products, ms | ratio"
    sys.stdout.write(table(head, lines) + "\n")


def step(teacher: BlockwiseVGG, phase: Phase, batch: int, as_products: bool) -> Callable[[], None]:
    """A training step on random features and logits."""
    fresh = scions(teacher.architecture, CLASSES, torch.Generator().manual_seed(0))
    distillation = Distillation(phase, of_span(fresh, phase.span), shots=10)
    network = nn.Sequential(distillation.scion, teacher[phase.span[1] :])
    side = IMAGE_SIZE >> phase.span[0]
    if as_products:
        network = as_matrix_products(network, side)
    random = torch.Generator().manual_seed(1)
    features = torch.rand(batch, teacher.architecture.width_after(phase.span[0] - 1), side, side, generator=random)
    logits = torch.randn(batch, CLASSES, generator=random)

    def act() -> None:
        distillation.optimizer.zero_grad()
        distance(network(features), logits).backward()
        distillation.optimizer.step()

    return act


if __name__ == "__main__":
    main()
