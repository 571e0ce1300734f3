"""A network's predictions for many images, most of them taken from faster arithmetic than float32's.

Fast logits come with an error. Where the largest logit leads the second by more than a multiple of the largest error
measured, the fast prediction is taken. The other images, those with the smallest leads first, go through the network
itself, and that measures the error. The margin is measured, not proved: see `SAFETY`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acceleration.winograd import as_matrix_products
from utils import machine

FAST_BATCH = 500
EXACT_BATCH = 250
SAFETY = 4  # the margin, in multiples of the largest error measured on the images that went through the network


@torch.no_grad()
def fast_predictions(network: nn.Module, features: Tensor) -> Tensor:
    """The classes that the network predicts in float32. features: (N, C, H, W), 4x4 pixels or fewer -> (N,)."""
    dtype = torch.bfloat16 if machine.has_fast_bfloat16(features.device) else torch.float32
    fast = as_matrix_products(network, features.shape[-1]).to(dtype)
    logits = torch.cat([fast(batch.to(dtype)) for batch in features.split(FAST_BATCH)]).float()
    predictions, leads = logits.argmax(1), lead(logits)
    error = torch.tensor(torch.nan)  # no lead exceeds it: the first batch always goes through the network
    for doubtful in leads.argsort().split(EXACT_BATCH):  # the smallest leads first
        if leads[doubtful[0]] > SAFETY * error:
            break
        exact = network(features[doubtful])
        predictions[doubtful] = exact.argmax(1)
        error = torch.fmax(error, largest_error(logits[doubtful], exact))
    return predictions


def lead(logits: Tensor) -> Tensor:
    """By how much the largest of each image's logits exceeds the second: (N, classes) -> (N,). NaN counts as -1."""
    largest = logits.topk(min(2, logits.shape[1])).values
    return (largest[:, 0] - largest[:, -1]).nan_to_num(nan=-1.0)


def largest_error(logits: Tensor, exact: Tensor) -> Tensor:
    """The largest error of a difference between two of an image's logits (N, classes)."""
    error = logits - exact
    return (error.amax(1) - error.amin(1)).max()
