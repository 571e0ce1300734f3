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
from torch import Tensor, nn

from acceleration.cuda_graphs import GraphedStep
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
FORMS: dict[str, Callable[[nn.Module, int], nn.Module]] = {  # of a network on maps of side * side pixels
    "itself": lambda network, side: network,
    "channels last": lambda network, side: network.to(memory_format=torch.channels_last),
    "products": as_matrix_products,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[6, 12, 19, 32, 64, 128])
    args = parser.parse_args()
    teacher = frozen(initialize(BlockwiseVGG(ARCHITECTURES["vgg16"], CLASSES), torch.Generator().manual_seed(0)))
    lines = []
    for batch in args.batch:
        for phase in (CIFAR100.phases[i] for i in (0, 1, 3, 4)):
            acts = [step(teacher, phase, batch, form) for form in ("itself", "products")]
            itself, products = in_turn(acts, ROUNDS, IN_A_ROW)
            lines.append(
                f"{batch} | {phase.name} | {1e3 * itself:.1f} | {1e3 * products:.1f} | {itself / products:.2f}"
            )
    head = f"images (Winograd from {WINOGRAD_FROM} on) | graft | network, ms | products, ms | ratio"
    sys.stdout.write(table(head, lines) + "\n")


def step(teacher: BlockwiseVGG, phase: Phase, batch: int, form: str) -> Callable[[], object]:
    """A training step on random features and logits, on the teacher's device; on a GPU as a CUDA graph.

    form: of the network, one of FORMS.
    """
    random, device = torch.Generator().manual_seed(0), next(teacher.parameters()).device
    scion = of_span(scions(teacher.architecture, teacher.classes, random), phase.span).to(device)
    distillation = Distillation(phase, scion, shots=10)
    side = IMAGE_SIZE >> phase.span[0]
    network = FORMS[form](nn.Sequential(distillation.scion, teacher[phase.span[1] :]), side)
    features = torch.rand(batch, teacher.architecture.width_after(phase.span[0] - 1), side, side, generator=random)
    logits = torch.randn(batch, teacher.classes, generator=random).to(device)
    layout = torch.channels_last if form == "channels last" else torch.contiguous_format
    features = features.to(device, memory_format=layout)

    def act(*_: Tensor) -> Tensor:
        distillation.optimizer.zero_grad()
        loss = distance(network(features), logits)
        loss.backward()
        distillation.optimizer.step()
        return loss.detach()

    if device.type != "cuda":
        return act
    graphed, unused = GraphedStep(act, distillation.optimizer), torch.zeros(batch, device=device)
    return lambda: graphed(unused, unused)


if __name__ == "__main__":
    main()
