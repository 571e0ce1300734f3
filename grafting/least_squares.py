"""A student that is a part of its VGG teacher: pruned filters, and least squares instead of training.

Each grafted convolution keeps the filters with the largest L1 norm. Behind it, in front of its ReLU, comes a 1x1
convolution with a bias that brings its outputs as close as possible to those that the same filters have in the teacher.
As the 1x1 convolution follows the other one directly, both are one convolution. The layers are solved in their order,
each with those before it already solved; the classifier's first linear layer comes last. No label, no gradient.

`--start teacher` begins here (grafting/start.py). The convolutions are those of FSKD (comparisons/fskd.py).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from grafting.distillation import distance
from grafting.inputs import Inputs
from grafting.teacher import FrozenTeacher
from models.architectures import CLASSIFIER
from models.vgg import convolutions

BATCH = 324  # views at once
ENOUGH = 16_200  # views: a map has 513 unknowns for an output at most, and more views change little (docs/start.md)
Batches = Sequence[tuple[Tensor, Tensor]]  # of images (B,) and their views (B,)


def strongest(layer: nn.Conv2d, count: int) -> Tensor:
    """The filters with the largest L1 norms, in their order: (count,)."""
    norms = layer.weight.abs().flatten(1).sum(1)
    return norms.argsort(descending=True, stable=True)[:count].sort().values


@torch.no_grad()
def pruned(teacher: FrozenTeacher) -> nn.Sequential:
    """The student's grafted blocks, on the teacher's device, with the weights of the filters that are kept.

    The classifier takes the inputs that are kept; the BatchNorm between its layers is absorbed into the first of them.
    """
    networks = teacher.networks
    student = networks.cut(networks.student(teacher.classes).to(teacher.device))
    inputs = torch.arange(teacher.shapes[networks.first][0], device=teacher.device)
    for block in networks.grafted:
        if block == CLASSIFIER:
            prune_classifier(student[block][1], teacher.network.classifier, inputs)
            continue
        for wide, narrow in zip(convolutions(teacher.blocks[block]), convolutions(student[block]), strict=True):
            kept = strongest(wide, narrow.out_channels)
            narrow.weight.copy_(wide.weight[kept][:, inputs])
            narrow.bias.copy_(wide.bias[kept])
            inputs = kept
    return student[networks.first : networks.last + 1]


def prune_classifier(ours: nn.Sequential, theirs: nn.Sequential, inputs: Tensor) -> None:
    linear = nn.utils.fusion.fuse_linear_bn_eval(theirs[0], theirs[1]) if len(theirs) == 3 else theirs[0]
    ours[0].weight.copy_(linear.weight[:, inputs])
    ours[0].bias.copy_(linear.bias)
    ours[-1].load_state_dict(theirs[-1].state_dict())


@torch.no_grad()
def solve(student: nn.Sequential, inputs: Inputs, batches: Batches) -> None:
    """Solve every convolution in order: each takes its inputs from the solved layers before.

    student: the grafted blocks, pruned; changed in place.
    """
    first = inputs.teacher.networks.first
    for index, narrow in enumerate(student):
        wide = inputs.teacher.blocks[first + index]
        for position, layer in enumerate(narrow):
            if isinstance(layer, nn.Conv2d):
                kept = strongest(wide[position], layer.out_channels)
                ours = nn.Sequential(*student[:index], narrow[: position + 1])
                found = outputs(inputs, batches, ours, first + index, wide[: position + 1])
                absorb(layer, *affine_map((x, y[:, kept]) for x, y in found))


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


@torch.no_grad()
def solve_adapter(s2t: nn.Conv2d, student: nn.Sequential, inputs: Inputs, batches: Batches) -> None:
    """Solve the adapter behind the student's last block, in place: the kept channels unchanged, the others fitted.

    student: the grafted blocks up to the one in front of the adapter, solved.
    """
    block = inputs.teacher.networks.first + len(student) - 1
    wide, narrow = inputs.teacher.blocks[block], student[-1]
    kept = strongest(convolutions(wide)[-1], convolutions(narrow)[-1].out_channels)
    weight, bias = affine_map(outputs(inputs, batches, student, block, wide))
    weight[kept], bias[kept] = torch.eye(len(kept), dtype=weight.dtype, device=weight.device), 0.0
    s2t.weight.copy_(weight[:, :, None, None])
    s2t.bias.copy_(bias)


def one_view(inputs: Inputs, view: int) -> Batches:
    """The same view of each image."""
    return _batches(inputs, torch.arange(len(inputs)), torch.full((len(inputs),), view))


def enough_views(inputs: Inputs) -> Batches:
    """All views of each image; of many images, as many crops of each, with their mirror images, as make up ENOUGH."""
    crops, images = inputs.teacher.views.count // 2, len(inputs)
    each = min(crops, max(1, ENOUGH // (2 * images)))
    image = torch.arange(images).repeat_interleave(2 * each)
    crop = torch.arange(each).repeat_interleave(2).repeat(images) * crops // each
    crop = crop if each == crops else (crop + image) % crops  # so that all crops are used as often
    return _batches(inputs, image, 2 * crop + torch.arange(2).repeat(each * images))


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
def mean_distance(network: nn.Module, inputs: Inputs, batches: Batches) -> float:
    """The loss of Distillation, mean over the views. network: from the first grafted block's input to the logits."""
    first = inputs.teacher.networks.first
    network = inputs.fast_network(network, first)
    losses = [
        distance(network(inputs.features(first, image, view)), inputs.logits(image, view)) for image, view in batches
    ]
    return torch.stack(losses).sum().item() / sum(len(image) for image, _ in batches)
