"""FSKD, few-sample knowledge distillation (Li et al., CVPR 2020): pruning and least squares; no label, no gradient.

For VGGs. The teacher's blocks 3 and 4 keep the half of their filters with the largest L1 norm. Behind each pruned
convolution, in front of its ReLU, comes a 1x1 convolution with a bias that brings its outputs as close as possible to
those that the same filters have in the teacher. As the 1x1 convolution follows the other one directly, both are one
convolution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor, nn

from comparisons.kd import PlainStudent, own_blocks, with_teachers_blocks
from grafting.distillation import distance
from grafting.inputs import Inputs
from grafting.method import Training
from grafting.recipes import Phase, Recipe
from grafting.teacher import FrozenTeacher

BATCH = 324  # views at once
Batches = Sequence[tuple[Tensor, Tensor]]  # of images (B,) and their views (B,)


@dataclass(frozen=True)
class FSKD(PlainStudent):
    """all_views: use all views of each image, as the other methods do; if not, the image alone, as the authors."""

    for_vggs: ClassVar[bool] = True

    all_views: bool = True

    @property
    def name(self) -> str:
        return "fskd" if self.all_views else "fskd-images"

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """One pass over the layers counts as an epoch, without a learning rate."""
        return (Phase("fskd", recipe.phases[-1].span, 1, 0.0, 0.0, scaled=False, selects_among=1),)

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        return own_blocks(pruned(teacher), teacher)

    def train(self, recipe: Recipe, training: Training) -> None:
        (phase,) = self.phases(recipe)
        inputs = training.inputs if self.all_views else Inputs(training.teacher, training.images)
        started, student = perf_counter(), nn.Sequential(*training.networks)
        views = inputs.teacher.views
        batches = batches_of(inputs, range(views.count) if self.all_views else (views.middle,))
        recover(student, inputs, batches)
        loss = mean_distance(student, inputs, batches)
        training.record(phase, training.networks, loss, perf_counter() - started)


def strongest(layer: nn.Conv2d, count: int) -> Tensor:
    """The filters with the largest L1 norms, in their order: (count,)."""
    norms = layer.weight.abs().flatten(1).sum(1)
    return norms.argsort(descending=True, stable=True)[:count].sort().values


def convolutions(blocks: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in blocks.modules() if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def pruned(teacher: FrozenTeacher) -> nn.Module:
    """The teacher's student, with the weights of the filters that are kept.

    Its classifier takes the inputs that are kept; the BatchNorm between its layers is absorbed into the first of them.
    """
    student = with_teachers_blocks(teacher).to(teacher.device)
    first, last = teacher.networks.first, teacher.networks.last
    inputs = torch.arange(teacher.shapes[first][0], device=teacher.device)
    pairs = zip(convolutions(teacher.blocks[first:last]), convolutions(student.features[first:last]), strict=True)
    for wide, narrow in pairs:
        kept = strongest(wide, narrow.out_channels)
        narrow.weight.copy_(wide.weight[kept][:, inputs])
        narrow.bias.copy_(wide.bias[kept])
        inputs = kept
    head = teacher.network.classifier
    linear = nn.utils.fusion.fuse_linear_bn_eval(head[0], head[1]) if len(head) == 3 else head[0]
    student.classifier[0].weight.copy_(linear.weight[:, inputs])
    student.classifier[0].bias.copy_(linear.bias)
    student.classifier[-1].load_state_dict(head[-1].state_dict())
    return student


@torch.no_grad()
def recover(student: nn.Sequential, inputs: Inputs, batches: Batches) -> None:
    """Solve every convolution and the first linear layer in order: each takes its inputs from the solved layers before.

    student: its own blocks, pruned; changed in place.
    """
    teacher, first, last = inputs.teacher, inputs.teacher.networks.first, inputs.teacher.networks.last
    for block in range(first, last):
        wide, before = teacher.blocks[block], student[: block - first]
        (narrow,) = student[block - first]
        for position, layer in enumerate(narrow):
            if isinstance(layer, nn.Conv2d):
                kept = strongest(wide[position], layer.out_channels)
                ours = nn.Sequential(*before, narrow[: position + 1])
                pairs = ((x, y[:, kept]) for x, y in outputs(inputs, batches, ours, block, wide[: position + 1]))
                absorb(layer, *affine_map(pairs))
    ours = nn.Sequential(*student[:-1], nn.Flatten())
    theirs = nn.Sequential(nn.Flatten(), *teacher.network.classifier[:-1])
    weight, bias = affine_map(outputs(inputs, batches, ours, last, theirs))
    linear = student[-1][0][1][0]
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def batches_of(inputs: Inputs, used: Sequence[int]) -> Batches:
    """The used views of all images, in batches."""
    pairs = torch.cartesian_prod(torch.arange(len(inputs)), torch.tensor(used))
    image, view = pairs.to(inputs.teacher.device).T
    return list(zip(image.split(BATCH), view.split(BATCH), strict=True))


def outputs(
    inputs: Inputs, batches: Batches, ours: nn.Module, block: int, theirs: nn.Module
) -> Iterator[tuple[Tensor, Tensor]]:
    """What both give for the views, a row for every pixel: (rows, C) and (rows, C').

    ours: from the input of the first grafted block. theirs: from the input of `block`.
    """
    first = inputs.teacher.networks.first
    ours, theirs = inputs.fast_network(ours, first), inputs.fast_network(theirs, block)
    for image, view in batches:
        x, y = ours(inputs.features(first, image, view)), theirs(inputs.features(block, image, view))
        yield tuple(maps.float().movedim(1, -1).flatten(0, -2) for maps in (x, y))


def affine_map(pairs: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Weight (C', C) and bias (C',) in float64 of the map x -> y of least squared error; of several, the smallest.

    pairs: rows x (rows, C) and y (rows, C'). They are not kept: their products are summed, in float64. Where a sum is
    not finite, all are NaN.
    """
    gram = cross = 0.0
    for x, y in pairs:
        x = nn.functional.pad(x.double(), (0, 1), value=1.0)  # the bias
        gram, cross = gram + x.T @ x, cross + x.T @ y.double()
    if gram.isfinite().all() and cross.isfinite().all():
        solution = torch.linalg.lstsq(gram.cpu(), cross.cpu(), driver="gelsd").solution.to(x.device)
    else:
        solution = torch.full_like(cross, torch.nan)
    return solution[:-1].T, solution[-1]


def absorb(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Put a 1x1 convolution behind the layer into the layer: Q (W * x + b) + c = (Q W) * x + (Q b + c).

    weight, bias: Q and c, in float64, so that the products are exact whatever the precision of the run.
    """
    layer.weight.copy_(torch.einsum("oc,cihw->oihw", weight, layer.weight.double()))
    layer.bias.copy_(weight @ layer.bias.double() + bias)


@torch.no_grad()
def mean_distance(student: nn.Sequential, inputs: Inputs, batches: Batches) -> float:
    """The loss of Distillation, mean over the views."""
    first = inputs.teacher.networks.first
    network = inputs.fast_network(student, first)
    losses = [
        distance(network(inputs.features(first, image, view)), inputs.logits(image, view)) for image, view in batches
    ]
    return torch.stack(losses).sum().item() / sum(len(image) for image, _ in batches)
