"""Export: from a student to one file, which is loaded again and checked before it is put in place.

The student is put on raw images (deployment/plain.py) and matched to the teacher's confidence. The loss of the method
sees only directions of logits (docs/method.md, section 3), so a student's logits have an arbitrary length, and their
softmax means nothing. Dividing all logits by one temperature (Guo et al., 2017) gives them one without changing any
prediction. It is fitted to the teacher's probabilities on the few images; no label is read.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data.datasets import ImageDataset
from data.views import Normalization, Views
from deployment import formats
from deployment.evaluation import TEACHER, count
from deployment.folding import USUALLY_FOLDED
from deployment.formats import INT8, Header, Images, logits_of
from deployment.plain import deployed
from grafting.students import TOLERANCE
from grafting.teacher import FrozenTeacher
from models import checkpoints
from models.logits import finite
from models.networks import Networks
from utils import files
from utils.errors import BadInput
from utils.precision import arithmetic
from utils.seeds import generator

CALIBRATION_VIEWS = 2000
ROUNDING = 2e-6  # of the largest logit; two logits that are each off by the measured 7e-7 can change places
INT8_LOSS = 0.3  # points of test accuracy that 8 bits may cost


class OnRawImages(nn.Module):
    """A network that takes normalised images, made to take raw ones: (B, 3, S, S) uint8 -> logits (B, classes)."""

    def __init__(self, network: nn.Module, normalization: Normalization):
        super().__init__()
        self.network = network
        self.normalization = normalization

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalization(images))


@dataclass(frozen=True)
class Source:
    """A student and what belongs to it.

    student: the whole of it, on normalised images, frozen, on the teacher's device. few_shot: the images
    (N, 3, stored, stored) uint8 that it has learned from. student_sha256: of its file.
    """

    teacher: FrozenTeacher
    student: nn.Sequential
    dataset: ImageDataset
    few_shot: np.ndarray
    student_sha256: str

    def logits(self, images: Images) -> Tensor:
        """Of the student as its file has it, for uint8 images. Raises LogitsNotFinite."""
        return finite(logits_of(OnRawImages(self.student, self.teacher.normalization), images, self.teacher.device))

    def temperature(self) -> float:
        """Of the student's logits, fitted to the teacher's probabilities on views of the few-shot images.

        Raises LogitsNotFinite.
        """
        views = calibration_views(self.few_shot, self.teacher.image_size)
        network = OnRawImages(self.teacher.network, self.teacher.normalization)
        teacher = finite(logits_of(network, views, self.teacher.device), TEACHER)
        return fitted_temperature(self.logits(views), teacher)

    def header(self, network: nn.Module, temperature: float, accuracy: float) -> Header:
        """What the file says about itself. accuracy: its own on the test set, in percent."""
        return {
            "dataset": self.dataset.name,
            **header_of(network, self.teacher.networks, self.dataset.image_size),
            "class_names": self.dataset.class_names(),
            "normalization": self.dataset.normalization.content,
            "image_size": self.dataset.image_size,
            "teacher_sha256": checkpoints.weights_sha256(self.teacher.network),
            "student_sha256": self.student_sha256,
            "subset_sha256": files.sha256(self.few_shot),
            "temperature": temperature,
            "accuracy": accuracy,
        }


def header_of(network: nn.Module, networks: Networks, image_size: int) -> Header:
    """What an exported file must say of its network, so that it can be loaded again and its size be told."""
    if networks.is_vgg:
        folded = {} if network.folded == USUALLY_FOLDED else {"folded": network.folded}
        return {"widths": network.widths, **folded}
    name = networks.content.get("networks", networks.name)
    return {"networks": name, "grafted": [networks.first, networks.last], "counts": count(network, image_size)}


def calibration_views(images: np.ndarray, image_size: int) -> Tensor:
    """Random training views (2000, 3, S, S) uint8 of few-shot images (N, 3, stored, stored), always the same ones."""
    random, views = generator("calibration"), Views(image_size)
    image = torch.from_numpy(random.integers(len(images), size=CALIBRATION_VIEWS))
    view = torch.from_numpy(random.integers(views.count, size=CALIBRATION_VIEWS))
    return views.crop(views.pad(torch.from_numpy(images)), image, view)


def fitted_temperature(student: Tensor, teacher: Tensor) -> float:
    """The temperature T that minimises the mean cross-entropy of softmax(student / T) to softmax(teacher).

    student, teacher: logits (B, classes) of the same images. The cross-entropy is convex in 1/T. Its derivative is the
    mean student logit under the student's probabilities minus the mean under the teacher's. Bisection finds where it
    is 0, for T from 1e-4 to 1e4.
    """
    student, target = student.double(), functional.softmax(teacher.double(), 1)
    wanted = (target * student).sum(1).mean()
    low, high = math.log(1e-4), math.log(1e4)  # of 1/T
    for _ in range(60):
        middle = (low + high) / 2
        found = (functional.softmax(student * math.exp(middle), 1) * student).sum(1).mean()
        low, high = (middle, high) if found < wanted else (low, middle)
    return math.exp(-middle)


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
    files.require_writable(target.parent, target.name)


def export(source: Source, target: Path) -> str:
    """Write the exported student, and return a line that says what was checked.

    Before it is put in place, the file is loaded again and run on all test images. Raises BadInput, and leaves nothing
    behind, if it is not the source's function: the same predictions and logits within 1e-4 of the largest; of 8 bits,
    at most 0.3 points of test accuracy less. Raises LogitsNotFinite.
    """
    ending = formats.ending_of(target)
    images, labels = source.teacher.test.images, source.teacher.test_labels.cpu()
    with arithmetic("float32", source.teacher.device):  # only here: torch.export does not work under it
        temperature, reference = source.temperature(), source.logits(images)
        network = deployed(source.teacher, source.student, temperature)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"student{ending}"
        header = source.header(network, temperature, accuracy_of(reference, labels))
        formats.write(network, header, written)
        logits = logits_of(formats.read(written)[0], images, torch.device("cpu"))
        if ending == INT8:
            found = require_small_loss(logits, reference, labels, target)
            formats.replace_header({**header, "accuracy": accuracy_of(logits, labels)}, written)
            formats.read(written)  # as it will be put in place
        else:
            found = require_same(logits, reference / temperature, target)
        files.write_bytes(target, written.read_bytes())
    return (
        f"{target}: {found}; test accuracy {accuracy_of(logits, labels):.2f}%, temperature {temperature:.4g},"
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


def require_small_loss(logits: Tensor, reference: Tensor, labels: Tensor, target: Path) -> str:
    """Raise BadInput if 8 bits cost more than 0.3 points of test accuracy; a line about the differences."""
    loss = round(accuracy_of(reference, labels) - accuracy_of(logits, labels), 9)  # 0.3 is 0.3
    if not loss <= INT8_LOSS:
        raise BadInput(f"{target}: not written, since 8 bits lose {loss:.2f} points of test accuracy; take .onnx")
    same = 100 * (logits.argmax(1) == reference.argmax(1)).double().mean().item()
    return f"8 bits, {same:.2f}% of {len(logits):,} test images classified as before, {loss:.2f} points lost"


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Percent. Raises LogitsNotFinite."""
    return 100 * int((finite(logits).argmax(1) == labels).sum()) / len(logits)
