"""Networks side by side on a test set: accuracy, calibration, size and speed."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from timeit import timeit

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from data.datasets import ImageDataset
from deployment.formats import Network, logits_of
from models.logits import finite
from models.networks import parameter_count
from utils.text import in_one_line, markdown_table

TEACHER = "teacher"  # its name beside others
BINS = 15  # of the expected calibration error, as Guo et al. (2017)
ROUNDS = {1: 50, 256: 7}  # timed calls by batch size, after one that is not counted


@dataclass(frozen=True)
class Candidate:
    """A network to measure, on raw images.

    file: its own file, if it has one. counted: for a network that is a function, a module with its parameters and
    operations, or their numbers (parameters, multiply-adds).
    """

    name: str
    network: Network
    file: Path | None = None
    counted: nn.Module | tuple[int, int] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device if isinstance(self.network, nn.Module) else torch.device("cpu")

    def counts(self, size: int) -> tuple[int, int]:
        """Parameters, and multiplications, each with an addition, that one image of size x size pixels takes."""
        if isinstance(self.counted, tuple):
            return self.counted
        return count(self.counted or self.network, size)


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


def compare(candidates: Sequence[Candidate], dataset: ImageDataset) -> list[Figures]:
    """Measure all; speeds in turn, so that a busy moment affects all. The teacher, where it is measured, is first.

    Raises LogitsNotFinite, with the candidate's name.
    """
    test, names = dataset.test(), dataset.class_names()
    labels = torch.from_numpy(test.labels)
    logits = [finite(logits_of(each.network, test.images, each.device), each.name) for each in candidates]
    latencies, of_256 = (seconds_in_turn(candidates, dataset.image_size, batch) for batch in ROUNDS)
    reference = logits[0].argmax(1) if candidates[0].name == TEACHER else None
    figures = []
    for candidate, found, latency, batch in zip(candidates, logits, latencies, of_256, strict=True):
        predictions, counts = found.argmax(1), candidate.counts(dataset.image_size)
        right = (predictions == labels).double()
        figures.append(
            Figures(
                name=candidate.name,
                parameters=counts[0],
                multiply_adds=counts[1],
                file_bytes=candidate.file.stat().st_size if candidate.file else None,
                accuracy=100 * right.mean().item(),
                by_class={name: 100 * right[labels == label].mean().item() for label, name in enumerate(names)},
                agreement=None if reference is None else 100 * (predictions == reference).double().mean().item(),
                calibration_error=expected_calibration_error(found, labels),
                nll=functional.cross_entropy(found.double(), labels).item(),
                latency_ms=1e3 * latency,
                images_per_second=256 / batch,
            )
        )
    return figures


def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Mean distance between confidence and accuracy over 15 bins of equal width, weighted by their size, in points.

    logits: (N, classes); labels: (N,).
    """
    confidence, predictions = functional.softmax(logits.double(), 1).max(1)
    is_correct = (predictions == labels).double()
    bin_of = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    surplus = torch.zeros(BINS, dtype=torch.float64).index_add(0, bin_of, confidence - is_correct)
    return 100 * surplus.abs().sum().item() / len(labels)


def seconds_in_turn(candidates: Sequence[Candidate], size: int, batch: int) -> list[float]:
    """Median seconds of each for a batch of random images, from the images on the CPU to the logits on the CPU."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, size, size), generator=random, dtype=torch.uint8)
    calls = [partial(logits_of, candidate.network, images, candidate.device, batch) for candidate in candidates]
    return medians_in_turn(calls, ROUNDS[batch])


def medians_in_turn(calls: Sequence[Callable[[], object]], rounds: int, in_a_row: int = 1) -> list[float]:
    """Median seconds of each call. In turn, so that a busy moment affects all; the first round does not count.

    in_a_row: how often each is called in a round, of which the mean counts.
    """
    taken = [[timeit(call, number=in_a_row) / in_a_row for call in calls] for _ in range(1 + rounds)]
    return [statistics.median(seconds) for seconds in zip(*taken[1:], strict=True)]


@torch.no_grad()
def count(network: nn.Module, size: int) -> tuple[int, int]:
    """Parameters, and multiplications, each with an addition, that one raw image of size x size pixels takes."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    return parameter_count(network), counter.get_total_flops() // 2


COLUMNS: dict[str, Callable[[Figures], str]] = {
    "network": lambda row: row.name,
    "parameters": lambda row: f"{row.parameters:,}",
    "multiply-adds": lambda row: f"{row.multiply_adds:,}",
    "file, MB": lambda row: "-" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}",
    "test %": lambda row: f"{row.accuracy:.2f}",
    "as teacher, %": lambda row: "-" if row.agreement is None else f"{row.agreement:.2f}",
    "ECE, points": lambda row: f"{row.calibration_error:.2f}",
    "NLL": lambda row: f"{row.nll:.3f}",
    "1 image, ms": lambda row: f"{row.latency_ms:.2f}",
    "images/s": lambda row: f"{row.images_per_second:,.0f}",
}
LEGEND = (
    "as teacher: test images that get the teacher's class; ECE: expected calibration error; NLL: negative log"
    " likelihood. Only an exported student is matched to the teacher's confidence."
)


def markdown(figures: Sequence[Figures]) -> str:
    """One table, what its columns mean, and a line on each network's three classes with the lowest accuracy."""
    body = [[text(row) for text in COLUMNS.values()] for row in figures]
    lines = [markdown_table((COLUMNS, (":-", *["-:"] * (len(COLUMNS) - 1)), *body)), "", LEGEND]
    for row in figures:
        lowest = sorted(row.by_class.items(), key=lambda item: item[1])[:3]
        classes = ", ".join(f"{in_one_line(name)} {accuracy:.1f}%" for name, accuracy in lowest)
        lines.append(f"{row.name}: lowest classes {classes}")
    return "\n".join(lines)
