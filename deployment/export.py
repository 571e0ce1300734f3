"""Export: from a student with adapters to one file, which is loaded again and checked before it is put in place."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.datasets import ImageDataset, LabelledImages
from data.views import Normalization
from deployment import formats, quantization
from deployment.calibration import calibration_views, fitted_temperature, logits_of
from deployment.folding import FoldedStudent, fold
from deployment.formats import INT8, Header
from grafting.teacher import FrozenTeacher
from models.architectures import student_of
from utils import files
from utils.errors import BadInput
from utils.precision import arithmetic

TOLERANCE = 1e-4  # of the largest logit
ROUNDING = 2e-6  # of the largest logit; two logits that are each off by the measured 7e-7 can change places
INT8_LOSS = 0.3  # points of test accuracy that 8 bits may cost


class OnRawImages(nn.Module):
    """A network that takes normalised images, made to take raw ones: (B, 3, 32, 32) uint8 -> logits (B, classes)."""

    def __init__(self, network: nn.Module, normalization: Normalization):
        super().__init__()
        self.network = network
        self.normalization = normalization

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalization(images))


@dataclass(frozen=True)
class Source:
    """A student with adapters and what belongs to it.

    scions: the sequence (B0, B1, B2), frozen, on the teacher's device. few_shot: the images (N, 3, stored, stored)
    uint8 that it has learned from. The hashes are sha256 of its file and of the teacher's weights.
    """

    teacher: FrozenTeacher
    scions: nn.Sequential
    dataset: ImageDataset
    few_shot: np.ndarray
    teacher_sha256: str
    student_sha256: str

    def with_adapters(self) -> OnRawImages:
        """The student as the paper has it."""
        graft = nn.Sequential(self.teacher.blocks[: self.teacher.networks.first], *self.scions)
        return OnRawImages(graft, self.dataset.normalization)

    def folded(self) -> tuple[FoldedStudent, float]:
        """The folded student with calibrated logits, on the CPU, and its temperature."""
        views = calibration_views(self.few_shot, self.dataset.image_size)
        teacher = OnRawImages(self.teacher.network, self.dataset.normalization)
        logits = [logits_of(network, views, self.teacher.device) for network in (self.with_adapters(), teacher)]
        temperature = fitted_temperature(*logits)
        network = fold(self.teacher, self.scions)
        network.divide_logits(temperature)
        return network, temperature

    def header(self, temperature: float, accuracy: float) -> Header:
        return Header(
            dataset=self.dataset.name,
            widths=student_of(self.teacher.network.architecture).widths,
            class_names=self.dataset.class_names(),
            normalization=self.dataset.normalization.content,
            image_size=self.dataset.image_size,
            teacher_sha256=self.teacher_sha256,
            student_sha256=self.student_sha256,
            subset_sha256=files.sha256(self.few_shot.tobytes()),
            temperature=temperature,
            accuracy=accuracy,
        )


def require_target(target: Path, fresh: bool) -> None:
    """Raise BadInput now if the file could not be written later. fresh: whether an existing one may be replaced."""
    if ".onnx" in formats.ending_of(target):
        for module in ("onnx", "onnxscript", "onnxruntime"):
            formats.needed(module, target)
    if target.exists():
        try:
            formats.read(target)
        except BadInput:
            raise BadInput(f"--to {target}: exists already and is no exported student; name another file") from None
        if not fresh:
            raise BadInput(f"--to {target}: exists already; --fresh replaces it, another --to keeps it")
    files.require_writable(target.parent)


def export(source: Source, target: Path) -> str:
    """Write the exported student, and return a line that says what was checked.

    Before it is put in place, the file is loaded again and run on all test images. Raises BadInput, and leaves nothing
    behind, if it is not the source's function: the same predictions and logits within 1e-4 of the largest; of 8 bits,
    at most 0.3 points of test accuracy less.
    """
    test = source.dataset.test()
    device = source.teacher.device
    with arithmetic("float32", device):  # only here: torch.export does not work under it
        reference = logits_of(source.with_adapters(), torch.from_numpy(test.images), device)
        network, temperature = source.folded()
    header = source.header(temperature, accuracy_of(reference, test))
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"student{formats.ending_of(target)}"
        if formats.ending_of(target) == INT8:
            float32 = Path(folder) / "float32.onnx"
            formats.write(network, header, float32)
            quantization.quantize(float32, written)
        else:
            formats.write(network, header, written)
        logits = logits_of(formats.read(written)[0], torch.from_numpy(test.images), torch.device("cpu"))
        if formats.ending_of(target) == INT8:
            found = require_small_loss(logits, reference, test, target)
        else:
            found = require_same(logits, reference / temperature, target)
        files.write_bytes(target, written.read_bytes())
    return (
        f"{target}: {found}; test accuracy {accuracy_of(logits, test):.2f}%, temperature {temperature:.4g},"
        f" {target.stat().st_size / 1e6:.1f} MB"
    )


def require_same(logits: Tensor, reference: Tensor, target: Path) -> str:
    """Raise BadInput unless both are the same function; a line about the differences.

    Classes whose logits in the reference differ by less than 2e-6 of the largest one are equal up to rounding.
    """
    largest = reference.abs().max()
    difference = ((logits - reference).abs().max() / largest).item()
    lead = reference.max(1).values - reference.gather(1, logits.argmax(1, keepdim=True))[:, 0]
    differing, tied = int((lead > ROUNDING * largest).sum()), int(((lead > 0) & (lead <= ROUNDING * largest)).sum())
    if differing or not difference <= TOLERANCE:
        raise BadInput(
            f"{target}: not written, since it is not the student's function ({differing} of {len(logits)} test images"
            f" are classified differently, logits differ by {difference:.1e} of the largest); choose another ending"
        )
    ties = f" but {tied}, whose two largest logits are equal up to rounding" if tied else ""
    return f"the same predictions on {len(logits):,} test images{ties}, logits within {difference:.1e} of the largest"


def require_small_loss(logits: Tensor, reference: Tensor, test: LabelledImages, target: Path) -> str:
    """Raise BadInput if 8 bits cost more than 0.3 points of test accuracy; a line about the differences."""
    loss = round(accuracy_of(reference, test) - accuracy_of(logits, test), 9)  # 0.3 is 0.3
    if not loss <= INT8_LOSS:
        raise BadInput(f"{target}: not written, since 8 bits lose {loss:.2f} points of test accuracy; take .onnx")
    same = 100 * (logits.argmax(1) == reference.argmax(1)).double().mean().item()
    return f"8 bits, {same:.2f}% of {len(logits):,} test images classified as before, {loss:.2f} points lost"


def accuracy_of(logits: Tensor, test: LabelledImages) -> float:
    """Percent."""
    return 100 * int((logits.argmax(1) == torch.from_numpy(test.labels)).sum()) / len(logits)
