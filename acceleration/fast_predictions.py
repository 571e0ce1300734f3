"""A network's predictions for many images, most of them settled by arithmetic that is faster than the network itself.

There are up to three levels, each slower and more exact than the one before: matrix products (acceleration/winograd.py)
in bfloat16 where the CPU has it, the same products in float32, and the network itself in float32. A level settles an
image where its largest logit leads the second by more than a multiple of the largest error measured. The others go to
the next level, smallest leads first; its logits show how large the error was. The margin is measured, not proved:
see `SAFETY`.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from acceleration.winograd import products_or_itself
from models.logits import finite
from utils import machine

BATCH = 500
REFINED_BATCH = 250
SAFETY = 4  # the margin, in multiples of the largest error measured on the images that went to the next level

Level = Callable[[Tensor], Tensor]  # features (B, C, H, W) -> logits (B, classes) in float32


@torch.no_grad()
def fast_predictions(network: nn.Module, features: Tensor) -> tuple[Tensor, dict[str, int]]:
    """The classes (N,) that the network predicts in float32, and how many images each level settled.

    features: (N, C, H, W). Raises LogitsNotFinite.
    """
    levels = levels_for(network, features)
    fastest, *finer = levels.values()
    at_once = max(1, min(BATCH, BATCH * 4096 // features[0].numel()))  # 4096: of a VGG16's block 2
    logits = torch.cat([fastest(batch) for batch in features.split(at_once)])
    settled_by = torch.zeros(len(features), dtype=torch.long, device=features.device)
    for level, compute in enumerate(finer, start=1):
        refine(logits, settled_by, level, compute, features)
    counts = settled_by.bincount(minlength=len(levels)).tolist()
    return finite(logits).argmax(1), dict(zip(levels, counts, strict=True))


def levels_for(network: nn.Module, features: Tensor) -> dict[str, Level]:
    """From the fastest to the network itself; the network alone where it has no form as matrix products.

    Products in bfloat16 take about half the time of those in float32, so they pay where they settle half the images,
    as a first batch shows.
    """
    products = products_or_itself(network, features.shape[1:])
    if products is network:
        return {"network": network}
    exact: dict[str, Level] = {"float32 products": products, "network": network}
    if not machine.has_fast_bfloat16(features.device):
        return exact
    half = copy.deepcopy(products).to(torch.bfloat16)

    def in_bfloat16(batch: Tensor) -> Tensor:
        return half(batch.to(torch.bfloat16)).float()

    first = features[:BATCH]
    fast, slow = in_bfloat16(first), products(first)
    settles_half = (lead(fast) > SAFETY * largest_error(fast, slow)).float().mean() >= 0.5
    return {"bfloat16 products": in_bfloat16, **exact} if settles_half else exact


def refine(logits: Tensor, settled_by: Tensor, level: int, compute: Level, features: Tensor) -> None:
    """Replace logits (N, classes) of the level before by this level's, from the smallest lead on, while in doubt."""
    images = (settled_by == level - 1).nonzero()[:, 0]
    leads = lead(logits[images])
    order = leads.argsort()
    error = torch.tensor(torch.nan)  # nothing exceeds it
    for position in order.split(REFINED_BATCH):
        if leads[position[0]] > SAFETY * error:
            break
        doubtful = images[position]
        finer = compute(features[doubtful])
        error = torch.fmax(error, largest_error(logits[doubtful], finer))
        logits[doubtful] = finer
        settled_by[doubtful] = level


def lead(logits: Tensor) -> Tensor:
    """By how much the largest of each image's logits exceeds the second: (N, classes) -> (N,). -1: not finite."""
    largest = logits.topk(min(2, logits.shape[1])).values
    return (largest[:, 0] - largest[:, -1]).where(logits.isfinite().all(1), -1.0)


def largest_error(logits: Tensor, finer: Tensor) -> Tensor:
    """The largest error of a difference between two of an image's logits (N, classes)."""
    error = logits - finer
    return (error.amax(1) - error.amin(1)).max()
