"""Can a teacher be grafted? What simple classifiers read off each block's output, and how large that is.

Stage 1 trains B0 with few steps (200 on CIFAR10), few images and from a fixed initialisation. So it comes close to the
teacher only where the output of block 2 lies close to the means of its classes: one image per class then stands for all
of them. Where this output is far smaller, B0 alone was worse; for whole students no pattern was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data.views import IDENTITY, VIEWS, crop, pad
from experiments import expectation
from grafting.recipes import Recipe
from grafting.teacher import TEST_BATCH, FrozenTeacher
from models.vgg import FIRST_GRAFTED
from utils.progress import bar

RANK_IMAGES = 1000
PENALTIES = tuple(10.0**k for k in range(-5, 2))  # of the mean squared length of a feature vector


@dataclass(frozen=True)
class BlockReport:
    """What is known of a convolution block's output.

    probe, one_shot: test accuracy in percent of a linear classifier, and of the nearest of one image per class. rms:
    root mean square. rank: effective rank.
    """

    block: int
    features: int
    probe: float
    one_shot: float
    rms: float
    rank: float


@dataclass(frozen=True)
class Diagnosis:
    """A report per convolution block, the teacher's test accuracy in percent, and its number of classes."""

    blocks: tuple[BlockReport, ...]
    teacher: float
    classes: int

    def text(self, recipe: Recipe, inputs: Sequence[str], teacher_file: Path) -> str:
        """The table, and what it means: the student to expect with this recipe, and what to do where it is poor.

        inputs: the flags that name the data set, for the commands.
        """
        lines = [
            "| block | features | linear probe, test % | one image per class, test % |    RMS | effective rank |",
            "| ----: | -------: | -------------------: | --------------------------: | -----: | -------------: |",
        ]
        lines += [
            f"| {r.block:5} | {r.features:8} | {r.probe:20.2f} | {r.one_shot:27.2f} | {r.rms:6.2f} | {r.rank:14.1f} |"
            for r in self.blocks
        ]
        b = self.blocks[FIRST_GRAFTED - 1]
        lines += [
            "",  # in Markdown, the next line would otherwise be a row of the table
            f"The teacher itself: {self.teacher:.2f}%. The output of block {b.block} is the input of B0. A linear"
            f" classifier on it is {self.teacher - b.probe:.2f} points below the teacher, one image per class"
            f" {self.teacher - b.one_shot:.2f} points; its RMS is {b.rms:.2f}.",
            *expectation.describe(self.teacher, b.one_shot, b.rms, recipe.steps(1, self.classes), inputs, teacher_file),
        ]
        return "\n".join(lines)


@torch.no_grad()
def diagnose(teacher: FrozenTeacher, images: np.ndarray) -> Diagnosis:
    """Measure what classifiers on each convolution block's output reach on the test set.

    images: the few-shot subset (N * classes, 3, 32, 32) uint8, class by class. The linear classifiers are ridge
    regressions on all of it, labelled by the teacher's predictions. The other classifier takes the first image of each
    class, averages its features over its 162 views, and predicts the class with the largest cosine. Effective rank is
    exp of the entropy of the normalised singular values (Roy and Vetterli, 2007) of the centred features of the first
    1000 test images.
    """
    network, device = teacher.network, teacher.device
    chosen = torch.arange(len(images), device=device)
    pictures = _views(teacher, images, chosen, torch.full_like(chosen, IDENTITY))
    *features, logits = _block_outputs(teacher, pictures)
    probes = [Ridge(block, logits.argmax(1), network.classes) for block in features]
    prototypes = _prototypes(teacher, images[:: len(images) // network.classes])

    count = len(teacher.test_labels)
    correct = torch.zeros(2 * len(probes) + 1, dtype=torch.float64, device=device)
    squares = torch.zeros(len(probes), dtype=torch.float64, device=device)
    sample: list[list[Tensor]] = [[] for _ in probes]
    batches = bar(teacher.test_batches(0), desc="test images", unit="batch", total=ceil(count / TEST_BATCH), delay=1)
    for batch, (pictures, labels) in enumerate(batches):
        *features, logits = _block_outputs(teacher, pictures)
        answers = [probe.predict(block) for probe, block in zip(probes, features, strict=True)]
        answers += [(block @ means.T).argmax(1) for means, block in zip(prototypes, features, strict=True)]
        correct += torch.stack([(answer == labels).sum() for answer in (*answers, logits.argmax(1))])
        squares += torch.stack([block.double().square().mean(1).sum() for block in features])
        if batch * len(labels) < RANK_IMAGES:
            for blocks, block in zip(sample, features, strict=True):
                blocks.append(block)
    *percent, percent_of_teacher = (100 * number / count for number in correct.tolist())
    rms = (squares / count).sqrt().tolist()
    reports = tuple(
        BlockReport(
            block=b,
            features=probe.size,
            probe=percent[b],
            one_shot=percent[len(probes) + b],
            rms=rms[b],
            rank=effective_rank(torch.cat(sample[b])[:RANK_IMAGES]),
        )
        for b, probe in enumerate(probes)
    )
    return Diagnosis(reports, percent_of_teacher, network.classes)


def _views(teacher: FrozenTeacher, images: np.ndarray, chosen: Tensor, view: Tensor) -> Tensor:
    """view[b] of image chosen[b], normalised: (B, 3, 32, 32)."""
    return teacher.normalization(crop(pad(torch.from_numpy(images)).to(teacher.device), chosen, view))


def _prototypes(teacher: FrozenTeacher, images: np.ndarray) -> list[Tensor]:
    """By block, the direction of each image's mean features over all its views: (len(images), D)."""
    view = torch.arange(VIEWS, device=teacher.device)
    by_image = []
    for image in bar(images, desc="one image per class", unit="image", delay=1):
        *features, _ = _block_outputs(teacher, _views(teacher, image[None], torch.zeros_like(view), view))
        by_image.append([functional.normalize(block.mean(0), dim=0) for block in features])
    return [torch.stack(block) for block in zip(*by_image, strict=True)]


def _block_outputs(teacher: FrozenTeacher, pictures: Tensor) -> list[Tensor]:
    """Output of every block, flattened: [(B, 16384), (B, 8192), (B, 4096), (B, 2048), (B, 512), (B, classes)]."""
    outputs = []
    for block in range(len(teacher.network)):
        pictures = teacher.network[block : block + 1](pictures)
        outputs.append(pictures.flatten(1))
    return outputs


class Ridge:
    """Ridge regression onto one-hot labels, in closed form. The penalty is chosen by leave-one-out error.

    features: (N, D); labels: (N,).
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int):
        self.size = features.shape[1]
        self.mean = features.mean(0)
        centred = (features - self.mean).double()
        targets = functional.one_hot(labels, classes).double()
        self.offset = targets.mean(0)
        gram = centred @ centred.T
        unit = gram.diagonal().mean().clamp_min(1e-30)  # features that are all alike still have an inverse
        _, self.weight = min(
            (self._solve(gram, targets - self.offset, penalty * unit) for penalty in PENALTIES),
            key=lambda fit: fit[0],
        )
        self.weight = (centred.T @ self.weight).float()

    @staticmethod
    def _solve(gram: Tensor, targets: Tensor, penalty: Tensor) -> tuple[float, Tensor]:
        """Leave-one-out squared error, and the dual weights (N, classes)."""
        inverse = torch.linalg.inv(gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        weights = inverse @ targets
        return (weights / inverse.diagonal()[:, None]).square().sum().item(), weights

    def predict(self, features: Tensor) -> Tensor:
        """(B, D) -> (B,) classes."""
        return ((features - self.mean) @ self.weight + self.offset.float()).argmax(1)


def effective_rank(features: Tensor) -> float:
    """exp(entropy) of the normalised singular values of the centred features (N, D); 1 where all are alike."""
    centred = (features - features.mean(0)).double()
    singular = torch.linalg.eigvalsh(centred @ centred.T).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-30)
    return torch.special.entr(share).sum().exp().item()
