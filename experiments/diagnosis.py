"""Can a teacher be grafted? What simple classifiers read off each block's output, and how large that is.

Stage 1 trains B0 with few steps (200 on CIFAR10), few images and from a fixed initialisation. So it comes close to the
teacher only where the output in front of it lies close to the means of its classes: one image per class then stands for
all of them (docs/teachers.md).
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grafting.inputs import Inputs
from grafting.teacher import FrozenTeacher
from models.logits import finite
from utils.text import bar

RANK_IMAGES = 1000
PENALTIES = tuple(10.0**k for k in range(-5, 2))  # of the mean squared length of a feature vector
POOR = 11.0  # points below the teacher; up to here, the students that were measured lost at most 2.8 points at N = 1
FOREIGN = 3.0  # points by which the nearest class mean is better than the teacher; of no teacher that was measured
MEASURED = (
    "What students lost at N = 1, where the nearest class mean was so many points below the teacher: CIFAR10: 0.3 at"
    " 0.2, 0.5 at 0.5, 9.8 at 12.0, 37.8 at 42.6; CIFAR100: 0.5 at 1.6, 0.8 at 4.4, 0.7 at 5.2, 2.8 at 10.6, 11.9 at"
    " 32.6 (docs/teachers.md)."
)


@dataclass(frozen=True)
class BlockReport:
    """What is known of a block's output.

    probe, nearest_mean: test accuracy in percent of a linear classifier, and of the nearest class mean of one image per
    class. rms: root mean square. rank: effective rank.
    """

    block: int
    features: int
    probe: float
    nearest_mean: float
    rms: float
    rank: float


@dataclass(frozen=True)
class Diagnosis:
    """A report for every block but the last; the teacher's test accuracy in percent; the first block to be grafted."""

    blocks: tuple[BlockReport, ...]
    teacher: float
    first: int

    def text(self, inputs: Sequence[str], teacher_file: Path) -> str:
        """The table, what it means, and what to do with a poor teacher. inputs: the flags that name the data set."""
        lines = [
            "| block | features | linear probe, test % | nearest class mean, test % |    RMS | effective rank |",
            "| ----: | -------: | -------------------: | -------------------------: | -----: | -------------: |",
        ]
        lines += [
            f"| {r.block:5} | {r.features:8} | {r.probe:20.2f} | {r.nearest_mean:26.2f} | {r.rms:6.2f} |"
            f" {r.rank:14.1f} |"
            for r in self.blocks
        ]
        b = self.blocks[self.first - 1]
        below = self.teacher - b.nearest_mean
        lines += [
            "",  # in Markdown, the next line would otherwise be a row of the table
            f"The teacher itself: {self.teacher:.2f}%. The output of block {b.block} is the input of B0. A linear"
            f" classifier on it is {_beside(self.teacher - b.probe)} the teacher, the nearest class mean of one"
            f" image per class {_beside(below)} it.",
            MEASURED,
        ]
        if below < -FOREIGN:
            lines.append("The nearest class mean beats the teacher itself: was it trained on these data?")
        elif below > POOR:
            better = teacher_file.with_name(f"{teacher_file.stem}-graftable.pth")
            command = ["python", "train_fskd.py", *inputs, "--train_teacher", "--teacher_from", str(teacher_file)]
            lines += [
                "This teacher is poor: few images do not stand for their classes. A few epochs on the labelled"
                " training images improve it:",
                f"  {shlex.join([*command, '--teacher', str(better)])}",
            ]
        return "\n".join(lines)


def _beside(below: float) -> str:
    """ "3.33 points above" for -3.33."""
    return f"{abs(below):.2f} points {'above' if below < 0 else 'below'}"


@torch.no_grad()
def diagnose(teacher: FrozenTeacher, images: np.ndarray) -> Diagnosis:
    """Measure what classifiers on each block's output reach on the test set.

    images: the few-shot subset (N * classes, 3, stored, stored) uint8, class by class. The linear classifiers are ridge
    regressions on all of it, labelled by the teacher's predictions. The nearest class mean takes the first image of
    each class, averages its features over its views, and predicts the class with the largest cosine. Effective rank is
    exp of the entropy of the normalised singular values (Roy and Vetterli, 2007) of the centred features of the first
    1000 test images. Raises LogitsNotFinite.
    """
    inputs, chosen = Inputs(teacher, images), torch.arange(len(images), device=teacher.device)
    shown = inputs.features(0, chosen, torch.full_like(chosen, teacher.views.middle))
    *features, logits = _block_outputs(teacher, shown)
    probes = [Ridge(block, finite(logits).argmax(1), teacher.classes) for block in features]
    means = _class_means(teacher, Inputs(teacher, images[:: len(images) // teacher.classes]))

    count = len(teacher.test_labels)
    correct = torch.zeros(2 * len(probes) + 1, dtype=torch.float64, device=teacher.device)
    squares = torch.zeros(len(probes), dtype=torch.float64, device=teacher.device)
    sample: list[list[Tensor]] = [[] for _ in probes]
    batches = bar(
        teacher.test_batches(0), desc="test images", unit="batch", total=ceil(count / teacher.front_batch), delay=1
    )
    for batch, (images, labels) in enumerate(batches):
        *features, logits = _block_outputs(teacher, images)
        scores = [probe.scores(block) for probe, block in zip(probes, features, strict=True)]
        scores += [block @ mean.T for mean, block in zip(means, features, strict=True)]
        correct += torch.stack([(finite(score).argmax(1) == labels).sum() for score in (*scores, logits)])
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
            nearest_mean=percent[len(probes) + b],
            rms=rms[b],
            rank=effective_rank(torch.cat(sample[b])[:RANK_IMAGES]),
        )
        for b, probe in enumerate(probes)
    )
    return Diagnosis(reports, percent_of_teacher, teacher.networks.first)


def _class_means(teacher: FrozenTeacher, inputs: Inputs) -> list[Tensor]:
    """By block, the direction of each image's mean features over all its views: (images, D)."""
    view = torch.arange(teacher.views.count, device=teacher.device)
    by_image = []
    for index in bar(range(len(inputs)), desc="one image per class", unit="image", delay=1):
        *features, _ = _block_outputs(teacher, inputs.features(0, torch.full_like(view, index), view))
        by_image.append([functional.normalize(block.mean(0), dim=0) for block in features])
    return [torch.stack(block) for block in zip(*by_image, strict=True)]


def _block_outputs(teacher: FrozenTeacher, images: Tensor) -> list[Tensor]:
    """Output of every block, flattened: [(B, 16384), (B, 8192), (B, 4096), (B, 2048), (B, 512), (B, classes)]."""
    features, outputs = images, []
    for block in teacher.blocks:
        features = block(features)
        outputs.append(features.flatten(1))
    return outputs


class Ridge:
    """Ridge regression of features (N, D) onto one-hot labels (N,). Leave-one-out error chooses the penalty."""

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

    def scores(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, classes); the largest says the class."""
        return (features - self.mean) @ self.weight + self.offset.float()


def effective_rank(features: Tensor) -> float:
    """exp(entropy) of the normalised singular values of the centred features (N, D); 1 where all are alike."""
    centred = (features - features.mean(0)).double()
    singular = torch.linalg.eigvalsh(centred @ centred.T).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-30)
    return torch.special.entr(share).sum().exp().item()
