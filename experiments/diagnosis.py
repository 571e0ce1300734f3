"""Can a teacher be grafted? Test accuracy of a linear classifier on each block's output.

Stage 1 gives B0 few steps (200 on CIFAR10), so it can reach the teacher only where block 2's output is already
nearly separable by class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data.views import IDENTITY, crop, pad
from grafting.teacher import FrozenTeacher
from models.vgg import FIRST_GRAFTED

RANK_IMAGES = 1000
PENALTIES = tuple(10.0**k for k in range(-5, 2))  # of the mean squared length of a feature vector


@dataclass(frozen=True)
class BlockReport:
    """probe: test accuracy in percent of a linear classifier on the block's output. rank: effective rank."""

    block: int
    features: int
    probe: float
    rank: float


@dataclass(frozen=True)
class Diagnosis:
    """A report per convolution block, and the teacher's test accuracy in percent."""

    blocks: tuple[BlockReport, ...]
    teacher: float

    def text(self) -> str:
        """The table, and the loss of accuracy at the input of B0."""
        lines = [
            "| block | features | linear probe, test % | effective rank |",
            "| ----: | -------: | -------------------: | -------------: |",
        ]
        lines += [f"| {r.block:5} | {r.features:8} | {r.probe:20.2f} | {r.rank:14.1f} |" for r in self.blocks]
        input_of_b0 = self.blocks[FIRST_GRAFTED - 1]
        return "\n".join(
            [
                *lines,
                "",  # in Markdown, the next line would otherwise be a row of the table
                f"The teacher itself: {self.teacher:.2f}%. A linear classifier on block {input_of_b0.block}'s output,"
                f" the input of B0, is {self.teacher - input_of_b0.probe:.2f} points below it.",
            ]
        )


@torch.no_grad()
def diagnose(teacher: FrozenTeacher, images: np.ndarray) -> Diagnosis:
    """Fit a linear classifier on each convolution block's output and measure its test accuracy.

    The classifiers are ridge regressions on few-shot images (N, 3, 32, 32) uint8, labelled by the teacher's
    predictions. Effective rank is exp of the entropy of the normalised singular values (Roy and Vetterli, 2007) of
    the centred features of the first 1000 test images.
    """
    network, device = teacher.network, teacher.device
    chosen = torch.arange(len(images), device=device)
    view = torch.full_like(chosen, IDENTITY)
    pictures = teacher.normalization(crop(pad(torch.from_numpy(images)).to(device), chosen, view))
    *features, logits = _block_outputs(teacher, pictures)
    probes = [Ridge(block, logits.argmax(1), network.classes) for block in features]

    correct = torch.zeros(len(probes) + 1, device=device)
    sample: list[list[Tensor]] = [[] for _ in probes]
    for batch, (pictures, labels) in enumerate(teacher.test_batches(0)):
        *features, logits = _block_outputs(teacher, pictures)
        answers = [probe.predict(block) for probe, block in zip(probes, features, strict=True)] + [logits.argmax(1)]
        correct += torch.stack([(answer == labels).sum() for answer in answers])
        if batch * len(labels) < RANK_IMAGES:
            for blocks, block in zip(sample, features, strict=True):
                blocks.append(block)
    percent = (100 * correct / len(teacher.test_labels)).tolist()
    reports = tuple(
        BlockReport(b, probe.size, percent[b], effective_rank(torch.cat(sample[b])[:RANK_IMAGES]))
        for b, probe in enumerate(probes)
    )
    return Diagnosis(reports, percent[-1])


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
        unit = gram.diagonal().mean()
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
    """exp(entropy) of the normalised singular values of the centred features (N, D)."""
    centred = (features - features.mean(0)).double()
    singular = torch.linalg.eigvalsh(centred @ centred.T).clamp_min(0).sqrt()
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp().item()
