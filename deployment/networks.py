"""What a file holds, as networks that take raw images: a teacher, a student of stage 1 or 2, or an exported one."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.datasets import ImageDataset
from deployment.evaluation import TEACHER, Candidate
from deployment.export import OnRawImages
from deployment.folding import fold
from deployment.formats import Header, Network, empty_network
from grafting.scions import Adapter, adapters_of, scions
from grafting.teacher import FrozenTeacher
from models import checkpoints
from models.architectures import student_of
from models.checkpoints import State
from models.networks import frozen
from models.vgg import BlockwiseVGG, cut
from utils import files
from utils.errors import BadInput


def student_in(kind: str, state: State, path: Path, teacher: FrozenTeacher) -> nn.Sequential:
    """The sequence (B0, B1, B2) of a student's file, frozen, on the teacher's device.

    kind, state: from checkpoints.read(path): "stage 2", or "teacher" for a student without adapters
    (comparisons/kd.py), which gets adapters that change nothing. Raises BadInput if the file holds no
    student of this teacher.
    """
    student = nn.Sequential(*scions(teacher, torch.Generator()))
    if kind == "stage 2":
        checkpoints.load(student, state, path)
        return frozen(student).to(teacher.device)
    network = checkpoints.teacher_from_state(state, path, teacher.classes)
    if not is_plain_student_of(network, teacher):
        raise BadInput(
            f"{path}: is no student of this teacher: a student has the teacher's blocks 0 to 2, and blocks 3 and 4 of"
            " half the width; name a student (...-net-...), and the teacher that it was made with by --teacher"
        )
    for adapter in adapters_of(student):
        nn.init.dirac_(adapter.weight)
        nn.init.zeros_(adapter.bias)
    for scion, block in zip(student, cut(network)[teacher.networks.first :], strict=True):
        (own,) = (layer for layer in scion if not isinstance(layer, Adapter))
        own.load_state_dict(block.state_dict())
    return frozen(student).to(teacher.device)


def is_plain_student_of(network: BlockwiseVGG, teacher: FrozenTeacher) -> bool:
    """Whether the network is a student of this teacher: its blocks 0 to 2, and the others at half the width."""
    first = teacher.networks.first
    ours, theirs = checkpoints.on_cpu(cut(network)[:first]), checkpoints.on_cpu(teacher.blocks[:first])
    is_student = network.architecture == student_of(teacher.network.architecture)
    return is_student and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def whole(state: State, path: Path, dataset: ImageDataset, device: torch.device) -> Candidate:
    """A whole network in a file: a teacher, or a student without adapters."""
    network = checkpoints.teacher_from_state(state, path, dataset.classes)
    name = TEACHER if network.architecture.batchnorm else "student without adapters"
    network = frozen(network).to(device, memory_format=torch.channels_last)
    return Candidate(name, OnRawImages(network, dataset.normalization), path)


def candidates(kind: str, state: Any, path: Path, teacher: FrozenTeacher, dataset: ImageDataset) -> list[Candidate]:
    """The teacher and what is in the file beside it: a student with its adapters and folded, or stage 1's scions alone.

    kind, state: from checkpoints.read(path).
    """
    first, found = teacher.networks.first, [Candidate(TEACHER, OnRawImages(teacher.network, dataset.normalization))]
    if kind == "stage 2":
        student = student_in(kind, state, path, teacher)
        graft = OnRawImages(nn.Sequential(teacher.blocks[:first], *student), dataset.normalization)
        folded = fold(teacher, student).to(teacher.device)
        return [*found, Candidate(f"student (L={len(student)})", graft, path), Candidate("student, folded", folded)]
    if len(state) != len(teacher.networks.grafted):
        raise BadInput(
            f"{path}: holds {len(state)} scions, this teacher has {len(teacher.networks.grafted)} blocks to graft"
        )
    for k, scion in enumerate(scions(teacher, torch.Generator())):
        checkpoints.load(scion, state[k], path)
        before, behind = teacher.blocks[: first + k], teacher.blocks[first + k + 1 :]
        graft = nn.Sequential(before, frozen(scion).to(teacher.device), behind)
        found.append(Candidate(f"B{k} alone", OnRawImages(graft, dataset.normalization)))
    return found


def exported(path: Path, network: Network, header: Header, dataset: ImageDataset, device: torch.device) -> Candidate:
    """An exported student, as formats.read() gives it: a module on the device, other formats on the CPU.

    Raises BadInput if its classes are not the data set's.
    """
    theirs, ours = header["class_names"], list(dataset.class_names())
    if theirs != ours:
        raise BadInput(
            f"{path}: has the {len(theirs)} classes of {header['dataset']}, which are not the {len(ours)} of"
            f" {dataset.name} ({files.difference(theirs, ours)}); name its --dataset and --data_path"
        )
    if isinstance(network, nn.Module):
        return Candidate("student, exported", network.to(device), path)
    name = "student, exported" if device.type == "cpu" else "student, exported, on the CPU"
    return Candidate(name, network, path, empty_network(header))
