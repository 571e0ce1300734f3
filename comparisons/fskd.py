"""FSKD, few-sample knowledge distillation (Li et al., CVPR 2020): pruning and least squares; no label, no gradient.

The teacher's blocks 3 and 4 keep the half of their filters with the largest L1 norm. Behind each pruned convolution,
in front of its ReLU, comes a 1x1 convolution with a bias that brings its outputs as close as possible to those that
the same filters have in the teacher. As the 1x1 convolution follows the other one directly, both are one convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor, nn

from comparisons.plain_student import PlainStudent, own_blocks
from data.views import IDENTITY, VIEWS
from grafting.distillation import Curve, NotFinite, distance
from grafting.method import Distill, Networks
from grafting.recipes import Phase, Recipe
from grafting.teacher import FrozenTeacher, Views
from models.checkpoints import State, on_cpu
from models.vgg import FIRST_GRAFTED, BlockwiseVGG, student_of

BATCH = 324  # views at once
Batches = Sequence[tuple[Tensor, Tensor]]  # of images (B,) and their views (B,)


@dataclass(frozen=True)
class FSKD(PlainStudent):
    """all_views: use all 162 views of each image, as the other methods do; if not, the image alone, as the authors."""

    all_views: bool = True
    draws: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "fskd" if self.all_views else "fskd-images"

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """One pass over the layers counts as an epoch, without a learning rate."""
        return (Phase("fskd", recipe.stage2[-1].span, 1, 0.0, 0.0, scaled=False, selects_among=1),)

    def networks(self, teacher: BlockwiseVGG, generator: torch.Generator) -> Networks:
        return own_blocks(pruned(teacher))

    def train(self, recipe: Recipe, networks: Networks, distill: Distill, keep_stage1: Callable[[], None]) -> None:
        (phase,) = self.phases(recipe)
        used = range(VIEWS) if self.all_views else (IDENTITY,)
        distill(phase, nn.Sequential(*networks), partial(LeastSquares, used=used))


def strongest(layer: nn.Conv2d, count: int) -> Tensor:
    """The filters with the largest L1 norms, in their order: (count,)."""
    norms = layer.weight.abs().flatten(1).sum(1)
    return norms.argsort(descending=True, stable=True)[:count].sort().values


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def pruned(teacher: BlockwiseVGG) -> BlockwiseVGG:
    """The teacher's student, with the weights of the filters that are kept.

    Its classifier takes the inputs that are kept; the BatchNorm between its layers is absorbed into the first of them.
    """
    student = BlockwiseVGG(student_of(teacher.architecture), teacher.classes).to(next(teacher.parameters()).device)
    student[:FIRST_GRAFTED].load_state_dict(teacher[:FIRST_GRAFTED].state_dict())
    inputs = torch.arange(teacher.architecture.width_after(FIRST_GRAFTED - 1))
    blocks = slice(FIRST_GRAFTED, len(teacher) - 1)
    for wide, narrow in zip(convolutions(teacher[blocks]), convolutions(student[blocks]), strict=True):
        kept = strongest(wide, narrow.out_channels)
        narrow.weight.copy_(wide.weight[kept][:, inputs])
        narrow.bias.copy_(wide.bias[kept])
        inputs = kept
    first = teacher.classifier[0]
    if teacher.architecture.batchnorm:
        first = nn.utils.fusion.fuse_linear_bn_eval(first, teacher.classifier[1])
    student.classifier[0].weight.copy_(first.weight[:, inputs])
    student.classifier[0].bias.copy_(first.bias)
    student.classifier[-1].load_state_dict(teacher.classifier[-1].state_dict())
    return student


class LeastSquares:
    """A phase in progress, as Distillation is one, but with no optimiser and a single epoch.

    used: the views of each image that are used (data/views.py).
    """

    optimizer = None

    def __init__(self, phase: Phase, scion: nn.Sequential, shots: int, used: Sequence[int]):
        self.phase = phase
        self.scion = scion
        self.used = used
        self.curve = Curve()
        self.best: State | None = None

    def run(
        self,
        teacher: FrozenTeacher,
        views: Views,
        _batch: int,
        _eval_every: int | None,
        _purpose: tuple[int | str, ...],
        after_epoch: Callable[[LeastSquares], None],
    ) -> None:
        """Solve layer by layer; then accuracy, and loss (Distillation's) over the views used. Raises NotFinite."""
        started = perf_counter()
        batches = batches_of(views, self.used)
        recover(self.scion, teacher, views, batches)
        self.curve.losses.append(mean_distance(self.scion, views, batches))
        if not math.isfinite(self.curve.losses[0]):
            raise NotFinite(self.phase.name, 1)
        solved = perf_counter()
        self.curve.accuracies[1] = teacher.accuracy(self.scion, self.phase.span[0])
        self.curve.seconds = {"training": solved - started, "evaluation": perf_counter() - solved}
        self.best = on_cpu(self.scion)
        after_epoch(self)


@torch.no_grad()
def recover(student: nn.Sequential, teacher: FrozenTeacher, views: Views, batches: Batches) -> None:
    """Solve every convolution and the first linear layer, each with those before it already solved.

    student: its blocks 3, 4 and 5, pruned; changed in place.
    """
    for block in (FIRST_GRAFTED, FIRST_GRAFTED + 1):
        wide, before = teacher.network.features[block], student[: block - FIRST_GRAFTED]
        (narrow,) = student[block - FIRST_GRAFTED]
        for position, layer in enumerate(narrow):
            if isinstance(layer, nn.Conv2d):
                kept = strongest(wide[position], layer.out_channels)
                ours = nn.Sequential(*before, narrow[: position + 1])
                pairs = ((x, y[:, kept]) for x, y in outputs(views, batches, ours, block, wide[: position + 1]))
                absorb(layer, *affine_map(pairs))
    head = teacher.network.classifier
    ours, theirs = nn.Sequential(*student[:-1], nn.Flatten()), nn.Sequential(nn.Flatten(), *head[:-1])
    weight, bias = affine_map(outputs(views, batches, ours, len(teacher.network) - 1, theirs))
    first = student[-1][0][1][0]
    first.weight.copy_(weight)
    first.bias.copy_(bias)


def batches_of(views: Views, used: Sequence[int]) -> Batches:
    """The used views of all images, in batches."""
    pairs = torch.cartesian_prod(torch.arange(len(views)), torch.tensor(used))
    image, view = pairs.to(views.teacher.device).T
    return list(zip(image.split(BATCH), view.split(BATCH), strict=True))


def outputs(
    views: Views, batches: Batches, ours: nn.Module, block: int, theirs: nn.Module
) -> Iterator[tuple[Tensor, Tensor]]:
    """What both give for the views, a row for every pixel: (rows, C) and (rows, C').

    ours: from the input of block 3. theirs: from the input of `block`.
    """
    ours, theirs = views.fast_network(ours, FIRST_GRAFTED), views.fast_network(theirs, block)
    for image, view in batches:
        x, y = ours(views.features(FIRST_GRAFTED, image, view)), theirs(views.features(block, image, view))
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
def mean_distance(student: nn.Sequential, views: Views, batches: Batches) -> float:
    """The loss of Distillation, mean over the views."""
    network = views.fast_network(student, FIRST_GRAFTED)
    losses = [
        distance(network(views.features(FIRST_GRAFTED, image, view)), views.logits(image, view))
        for image, view in batches
    ]
    return torch.stack(losses).sum().item() / sum(len(image) for image, _ in batches)
