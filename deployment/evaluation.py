"""Networks side by side on a test set: accuracy, calibration, size and speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data.datasets import ImageDataset
from deployment.calibration import expected_calibration_error, logits_of, negative_log_likelihood
from models.networks import parameter_count
from utils.text import in_one_line, markdown_table

TEACHER = "teacher"  # its name beside others
ROUNDS = {1: 50, 256: 7}  # timed calls by batch size, after one that is not counted


@dataclass(frozen=True)
class Candidate:
    """A network to measure. network: raw images (B, 3, 32, 32) uint8 -> logits (B, classes). counted: a module with
    its parameters and operations, on any device; `network` itself where that is one. file_bytes: None without a file.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    counted: nn.Module
    device: torch.device
    file_bytes: int | None = None


@dataclass(frozen=True)
class Figures:
    """What was measured of one network.

    accuracy, by_class: test accuracy in percent. agreement: percent of test images classified as by the teacher, None
    without it. calibration_error: expected calibration error in points. nll: negative log likelihood in nats.
    latency_ms: of one image. images_per_second: in batches of 256.
    """

    name: str
    parameters: int
    multiply_adds: int
    file_bytes: int | None
    accuracy: float
    by_class: dict[str, float]
    agreement: float | None
    calibration_error: float
    nll: float
    latency_ms: float
    images_per_second: float

    @property
    def content(self) -> dict[str, Any]:
        return asdict(self)


def compare(candidates: Sequence[Candidate], dataset: ImageDataset) -> list[Figures]:
    """Measure all; speeds in turn, so that a busy moment affects all. The teacher, where it is measured, is first."""
    test = dataset.test()
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    logits = [logits_of(candidate.network, images, candidate.device) for candidate in candidates]
    latencies, of_256 = (seconds_in_turn(candidates, dataset.image_size, batch) for batch in ROUNDS)
    reference = logits[0].argmax(1) if candidates[0].name == TEACHER else None
    figures = []
    for candidate, found, latency, batch in zip(candidates, logits, latencies, of_256, strict=True):
        predictions = found.argmax(1)
        right = (predictions == labels).double()
        figures.append(
            Figures(
                name=candidate.name,
                parameters=parameter_count(candidate.counted),
                multiply_adds=multiply_adds(candidate.counted, dataset.image_size),
                file_bytes=candidate.file_bytes,
                accuracy=100 * right.mean().item(),
                by_class={
                    name: 100 * right[labels == label].mean().item() for label, name in enumerate(dataset.class_names())
                },
                agreement=None if reference is None else 100 * (predictions == reference).double().mean().item(),
                calibration_error=expected_calibration_error(found, labels),
                nll=negative_log_likelihood(found, labels),
                latency_ms=1e3 * latency,
                images_per_second=256 / batch,
            )
        )
    return figures


def seconds_in_turn(candidates: Sequence[Candidate], size: int, batch: int) -> list[float]:
    """Median seconds of each for a batch of random images, from the images on the CPU to the logits on the CPU."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, size, size), generator=random, dtype=torch.uint8)
    taken: list[list[float]] = [[] for _ in candidates]
    for _ in range(1 + ROUNDS[batch]):
        for candidate, seconds in zip(candidates, taken, strict=True):
            started = perf_counter()
            logits_of(candidate.network, images, candidate.device, batch)
            seconds.append(perf_counter() - started)
    return [statistics.median(seconds[1:]) for seconds in taken]


@torch.no_grad()
def multiply_adds(network: nn.Module, size: int) -> int:
    """Multiplications, each with an addition, that one image of size x size pixels takes."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    return counter.get_total_flops() // 2


HEAD = (
    "network", "parameters", "multiply-adds", "file, MB", "test %", "as teacher, %", "ECE, points", "NLL",
    "1 image, ms", "images/s",
)  # fmt: skip


LEGEND = (
    "as teacher: test images that get the teacher's class; ECE: expected calibration error; NLL: negative log"
    " likelihood. Only an exported student is calibrated."
)


def markdown(figures: Sequence[Figures]) -> str:
    """One table, what its columns mean, and a line on the classes with the lowest accuracy."""
    body = [
        (
            row.name,
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            "-" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}",
            f"{row.accuracy:.2f}",
            "-" if row.agreement is None else f"{row.agreement:.2f}",
            f"{row.calibration_error:.2f}",
            f"{row.nll:.3f}",
            f"{row.latency_ms:.2f}",
            f"{row.images_per_second:,.0f}",
        )
        for row in figures
    ]
    rule = (":-", *["-:"] * (len(HEAD) - 1))
    return "\n".join([markdown_table((HEAD, rule, *body)), "", LEGEND, *map(lowest_classes, figures)])


def lowest_classes(row: Figures, count: int = 3) -> str:
    lowest = sorted(row.by_class.items(), key=lambda item: item[1])[:count]
    return f"{row.name}: lowest classes " + ", ".join(
        f"{in_one_line(name)} {accuracy:.1f}%" for name, accuracy in lowest
    )
