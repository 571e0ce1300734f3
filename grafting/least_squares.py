"""A student that is a part of its VGG teacher: filters are chosen and fitted by least squares instead of trained.

For each grafted convolution, from front to back:

1. Of the teacher's channels, those are kept from which the others follow best on the images (`most_telling`).
2. The student takes the filters of these channels. Where they read a channel of the convolution before that is not
   kept, they read instead what the kept ones predict of it.
3. Behind the convolution, in front of its ReLU, comes a 1x1 convolution with a bias that brings its outputs as close as
   possible to those that the same filters have in the teacher. As it follows directly, both are one convolution.

The classifier's first linear layer comes last. No label, no gradient. The few-shot images are shown in mixed views
(grafting/mixed_views.py). `--start teacher` begins here (grafting/start.py). FSKD keeps the filters of largest L1 norm
and predicts nothing (comparisons/fskd.py).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grafting.distillation import distance
from grafting.inputs import Inputs
from grafting.teacher import FrozenTeacher
from models.architectures import CLASSIFIER
from models.vgg import linear_layers

BATCH = 324  # views at once
RIDGE = 1e-6  # of the mean variance, added to each: from few images, many channels follow exactly from others
Batches = Sequence[tuple[Tensor, Tensor]]  # of images (B,) and their views (B,)


class Place(NamedTuple):
    """Where a convolution is: its block, its position there, and the position behind its ReLU, or behind the pool."""

    block: int
    position: int
    end: int


class Kept(NamedTuple):
    """The channels (K,) of a teacher's convolution that are kept, and the affine map from them to all channels.

    weight (C, K) and bias (C,) in float64. The map gives the kept channels unchanged.
    """

    channels: Tensor
    weight: Tensor
    bias: Tensor


Keep = Callable[[Inputs, Batches, Place, int], Kept]  # the last argument: how many channels


def most_telling(inputs: Inputs, batches: Batches, place: Place, count: int) -> Kept:
    """The channels that leave least of the others unexplained on the views, by the weights of the next layer."""
    mean, covariance = moments(inputs, batches, place)
    channels = greedy(covariance, readers(inputs.teacher, place), count)
    weight = torch.linalg.solve(covariance[channels][:, channels], covariance[channels]).T
    return Kept(*(part.to(inputs.teacher.device) for part in (channels, weight, mean - weight @ mean[channels])))


def greedy(covariance: Tensor, readers: Tensor, count: int) -> Tensor:
    """Greedy column subset selection: (count,) channels, in order.

    Each in turn is the one from which most of the rest can be predicted: of what the channels before it do not predict,
    as the next layer sees it. covariance: of the channels, (C, C). readers: W^T W (C, C) of that layer's weights W.
    """
    left, read, taken = covariance.clone(), readers @ covariance, []
    for _ in range(count):
        explained = (left * read).sum(0) / left.diag()
        explained[taken] = -torch.inf
        taken.append(int(explained.argmax()))
        share = left[taken[-1]] / left[taken[-1], taken[-1]]
        read = read - torch.outer(read[:, taken[-1]], share)
        left = left - torch.outer(left[:, taken[-1]], share)
    return torch.tensor(sorted(taken))


def moments(inputs: Inputs, batches: Batches, place: Place) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of the teacher's channels, in float64 on the CPU, with RIDGE.

    The covariance is RIDGE alone where it would not be finite. Sums are of the differences from the first row, so that
    a channel that does not change has a variance of exactly 0.
    """
    count, total, gram, first = 0, 0.0, 0.0, None
    for rows in rows_of(inputs, batches, inputs.teacher.blocks[place.block][: place.end], place.block):
        first = rows[0].double() if first is None else first
        y = rows.double() - first
        count, total, gram = count + len(y), total + y.sum(0), gram + y.T @ y
    mean, square = (sums.cpu() / count for sums in (total, gram))
    covariance, mean = square - torch.outer(mean, mean), mean + first.cpu()
    covariance = covariance if covariance.isfinite().all() else torch.zeros_like(covariance)
    ridge = RIDGE * covariance.diag().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return mean, covariance + ridge * torch.eye(len(mean), dtype=torch.float64)


def readers(teacher: FrozenTeacher, place: Place) -> Tensor:
    """How the layer behind a convolution reads its channels, as `greedy` takes it: (C, C) in float64 on the CPU."""
    layers = [layer for layer in teacher.blocks.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    behind = layers[layers.index(teacher.blocks[place.block][place.position]) + 1]
    weight = behind.weight.double().cpu().transpose(0, 1).flatten(1)
    return weight @ weight.T


@torch.no_grad()
def fitted(
    inputs: Inputs, batches: Batches, keep: Keep = most_telling, solves_classifier: bool = True
) -> tuple[nn.Sequential, list[Kept]]:
    """The student's grafted blocks, and what is kept at the end of each block of convolutions.

    keep: which channels. The BatchNorm between the classifier's layers is absorbed into the first of them.
    """
    teacher, networks = inputs.teacher, inputs.teacher.networks
    student = networks.cut(networks.student(teacher.classes).to(teacher.device))[networks.first : networks.last + 1]
    before = all_of(teacher.shapes[networks.first][0], teacher.device)
    at_ends = []
    for index, narrow in enumerate(student):
        block = networks.first + index
        if block == CLASSIFIER:
            begin_classifier(narrow[1], teacher.network.classifier, before)
            continue
        wide = teacher.blocks[block]
        for position, end in pairwise([*positions(wide), len(wide)]):
            layer = narrow[position]
            kept = keep(inputs, batches, Place(block, position, end), layer.out_channels)
            filters = wide[position].weight[kept.channels].double()
            layer.weight.copy_(torch.einsum("oihw,ic->ochw", filters, before.weight))
            layer.bias.copy_(wide[position].bias[kept.channels])  # the 1x1 convolution fits it
            ours = nn.Sequential(*student[:index], narrow[: position + 1])
            found = outputs(inputs, batches, ours, block, wide[: position + 1])
            append_map(layer, *affine_map((x, y[:, kept.channels]) for x, y in found))
            before = kept
        at_ends.append(before)
    if solves_classifier and CLASSIFIER in networks.grafted:
        solve_classifier(student, inputs, batches)
    return student, at_ends


def positions(block: nn.Sequential) -> list[int]:
    """Where a block's convolutions are."""
    return [position for position, layer in enumerate(block) if isinstance(layer, nn.Conv2d)]


def all_of(channels: int, device: torch.device) -> Kept:
    """In front of the first grafted block, where the student has the teacher's channels."""
    exact = {"dtype": torch.float64, "device": device}
    return Kept(torch.arange(channels, device=device), torch.eye(channels, **exact), torch.zeros(channels, **exact))


def begin_classifier(ours: nn.Sequential, theirs: nn.Sequential, before: Kept) -> None:
    """Copy the teacher's classifier, with the columns of the channels that are kept."""
    first, last = linear_layers(theirs)
    ours[0].weight.copy_(first.weight[:, before.channels])
    ours[0].bias.copy_(first.bias)
    ours[-1].load_state_dict(last.state_dict())


@torch.no_grad()
def solve_classifier(student: nn.Sequential, inputs: Inputs, batches: Batches) -> None:
    """Solve the first linear layer of the student's classifier, in place, against the teacher's values behind it.

    student: the grafted blocks, of which the last is the classifier.
    """
    ours = nn.Sequential(*student[:-1], nn.Flatten())
    theirs = nn.Sequential(nn.Flatten(), *inputs.teacher.network.classifier[:-1])
    weight, bias = affine_map(outputs(inputs, batches, ours, CLASSIFIER, theirs))
    linear = student[-1][1][0]
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def one_view(inputs: Inputs, view: int) -> Batches:
    """The same view of each image."""
    return _batches(inputs, torch.arange(len(inputs)), torch.full((len(inputs),), view))


def all_views(inputs: Inputs) -> Batches:
    """All views of each image."""
    images, views = len(inputs), inputs.views
    return _batches(inputs, torch.arange(images).repeat_interleave(views), torch.arange(views).repeat(images))


def _batches(inputs: Inputs, image: Tensor, view: Tensor) -> Batches:
    device = inputs.teacher.device
    return list(zip(image.to(device).split(BATCH), view.to(device).split(BATCH), strict=True))


def outputs(
    inputs: Inputs, batches: Batches, ours: nn.Module, block: int, theirs: nn.Module
) -> Iterator[tuple[Tensor, Tensor]]:
    """What both give for the views, a row for every pixel: (rows, C) and (rows, C').

    ours: from the input of the first grafted block. theirs: from the input of `block`.
    """
    first = inputs.teacher.networks.first
    return zip(rows_of(inputs, batches, ours, first), rows_of(inputs, batches, theirs, block), strict=True)


def rows_of(inputs: Inputs, batches: Batches, network: nn.Module, block: int) -> Iterator[Tensor]:
    """What a network from the input of `block` gives for each batch of views, a row for every pixel: (rows, C)."""
    network = inputs.fast_network(network, block)
    for image, view in batches:
        yield network(inputs.features(block, image, view)).float().movedim(1, -1).flatten(0, -2)


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


def append_map(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Put a 1x1 convolution behind the layer into the layer: Q (W * x + b) + c = (Q W) * x + (Q b + c).

    weight, bias: Q and c, in float64, so that the products are exact whatever the precision of the run.
    """
    layer.weight.copy_(torch.einsum("oc,cihw->oihw", weight, layer.weight.double()))
    layer.bias.copy_(weight @ layer.bias.double() + bias)


@torch.no_grad()
def mean_distance(network: nn.Module, inputs: Inputs, batches: Batches) -> float:
    """The loss of Distillation, mean over the views. network: from the first grafted block's input to the logits."""
    first = inputs.teacher.networks.first
    network = inputs.fast_network(network, first)
    losses = [
        distance(network(inputs.features(first, image, view)), inputs.logits(image, view)) for image, view in batches
    ]
    return torch.stack(losses).sum().item() / sum(len(image) for image, _ in batches)
