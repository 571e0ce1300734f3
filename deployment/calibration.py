"""Calibration: one temperature that fits a student's probabilities to the teacher's.

The loss of the method sees only directions of logits (docs/method.md, section 3), so a student's logits have an
arbitrary length, and their softmax means nothing. Dividing all logits by one temperature (Guo et al., 2017) gives them
one without changing any prediction. It is fitted to the teacher's probabilities on the few images; no label is read.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data.views import Views
from utils.seeds import generator

CALIBRATION_VIEWS = 2000
BINS = 15  # of the expected calibration error, as Guo et al. (2017)


def calibration_views(images: np.ndarray, image_size: int) -> Tensor:
    """Random training views (2000, 3, S, S) uint8 of few-shot images (N, 3, stored, stored), always the same ones."""
    random, views = generator("calibration"), Views(image_size)
    image = torch.from_numpy(random.integers(len(images), size=CALIBRATION_VIEWS))
    view = torch.from_numpy(random.integers(views.count, size=CALIBRATION_VIEWS))
    return views.crop(views.pad(torch.from_numpy(images)), image, view)


def fitted_temperature(student: Tensor, teacher: Tensor) -> float:
    """The temperature T that minimises the mean cross-entropy of softmax(student / T) to softmax(teacher).

    student, teacher: logits (B, classes) of the same images. The cross-entropy is convex in 1/T. Its derivative, the
    mean student logit under the student's probabilities minus that under the teacher's, is brought to 0 by bisection,
    for T from 1e-4 to 1e4.
    """
    student, target = student.double(), functional.softmax(teacher.double(), 1)
    wanted = (target * student).sum(1).mean()
    low, high = math.log(1e-4), math.log(1e4)  # of 1/T
    for _ in range(60):
        middle = (low + high) / 2
        found = (functional.softmax(student * math.exp(middle), 1) * student).sum(1).mean()
        low, high = (middle, high) if found < wanted else (low, middle)
    return math.exp(-middle)


def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Mean distance between confidence and accuracy over 15 bins of equal width, weighted by their size, in points.

    logits: (N, classes); labels: (N,).
    """
    confidence, predictions = functional.softmax(logits.double(), 1).max(1)
    is_correct = (predictions == labels).double()
    bin_of = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    surplus = torch.zeros(BINS, dtype=torch.float64).index_add(0, bin_of, confidence - is_correct)
    return 100 * surplus.abs().sum().item() / len(labels)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label) over the images, in nats."""
    return functional.cross_entropy(logits.double(), labels).item()


@torch.inference_mode()
def logits_of(network: nn.Module, images: Tensor, device: torch.device, batch: int = 250) -> Tensor:
    """The network's logits (N, classes), float32 on the CPU, for uint8 images (N, 3, 32, 32)."""
    return torch.cat([network(part.to(device)).float().cpu() for part in images.split(batch)])
