"""What a file holds, as networks that take raw images: a teacher, a student of stage 1 or 2, or an exported one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.datasets import ImageDataset
from deployment.evaluation import TEACHER, Candidate
from deployment.export import OnRawImages
from deployment.folding import fold
from deployment.formats import Header, Network
from grafting.scions import Adapter, adapters_of, scions
from grafting.teacher import FrozenTeacher
from models import checkpoints, records
from models.architectures import student_of
from models.checkpoints import State
from models.networks import frozen
from models.vgg import BlockwiseVGG, cut
from utils import files
from utils.errors import BadInput


def student_in(kind: str, state: State, path: Path, teacher: FrozenTeacher) -> nn.Sequential:
    """The sequence (B0, B1, B2) of a student's file, frozen, on the teacher's device.

    kind, state: from checkpoints.read(path): "stage 2", or "teacher" for a student without adapters
    (comparisons/plain_student.py), which gets adapters that change nothing. Raises BadInput if the file holds no
    student of this teacher.
    """
    student = nn.Sequential(*scions(teacher, torch.Generator()))
    if kind == "stage 2":
        checkpoints.load(student, state, path)
    else:
        _load_without_adapters(student, checkpoints.teacher_from_state(state, path, teacher.classes), path, teacher)
    return frozen(student).to(teacher.device)


def _load_without_adapters(student: nn.Sequential, network: BlockwiseVGG, path: Path, teacher: FrozenTeacher) -> None:
    """Load a whole network into the scions (B0, B1, B2)."""
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


def is_plain_student_of(network: BlockwiseVGG, teacher: FrozenTeacher) -> bool:
    """Whether the network is a student of this teacher: its blocks 0 to 2, and the others at half the width."""
    if network.architecture != student_of(teacher.network.architecture):
        return False
    first = teacher.networks.first
    ours, theirs = checkpoints.on_cpu(cut(network)[:first]), checkpoints.on_cpu(teacher.blocks[:first])
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


def shots_and_subset_seed_of(path: Path, subset_seed: int) -> tuple[int, int]:
    """From how many shots a student was made, and with which subset seed: by its record, or else by its name.

    subset_seed: for a file without a record. Raises BadInput where neither says it.
    """
    if setting := records.setting_of(path):
        with files.reading(records.path_of(path), records.KIND):
            return int(setting["shots"]), int(setting["subset_seed"])
    if not (named := re.search(r"-(\d{1,4})perclass", path.name)):
        raise BadInput(
            f"{path}: neither a record nor its name (...-<N>perclass...) says from how many shots it was made;"
            " rename it so"
        )
    return int(named[1]), subset_seed


def whole(state: State, path: Path, dataset: ImageDataset, device: torch.device) -> Candidate:
    """A whole network in a file: a teacher, or a student without adapters."""
    network = checkpoints.teacher_from_state(state, path, dataset.classes)
    name = TEACHER if network.architecture.batchnorm else "student without adapters"
    on_device = frozen(network).to(device, memory_format=torch.channels_last)
    return of_module(name, on_device, dataset, path)


def candidates(kind: str, state: Any, path: Path, teacher: FrozenTeacher, dataset: ImageDataset) -> list[Candidate]:
    """The teacher and what is in the file beside it: a student with its adapters and folded, or stage 1's scions alone.

    kind, state: from checkpoints.read(path).
    """
    found, first = [of_module(TEACHER, teacher.network, dataset)], teacher.networks.first
    if kind == "stage 2":
        student = student_in(kind, state, path, teacher)
        found.append(of_module("student (L=3)", nn.Sequential(teacher.blocks[:first], *student), dataset, path))
        folded = fold(teacher, student).to(teacher.device)
        return [*found, Candidate("student, folded", folded, folded, teacher.device)]
    for k, scion in enumerate(scions(teacher, torch.Generator())):
        checkpoints.load(scion, state[k], path)
        before, behind = teacher.blocks[: first + k], teacher.blocks[first + k + 1 :]
        graft = nn.Sequential(before, frozen(scion).to(teacher.device), behind)
        found.append(of_module(f"B{k} alone", graft, dataset))
    return found


def exported(path: Path, network: Network, header: Header, dataset: ImageDataset, device: torch.device) -> Candidate:
    """An exported student, as formats.read() gives it: a module on the device, other formats on the CPU, as they say.

    Raises BadInput if its classes are not the data set's.
    """
    if header.class_names != dataset.class_names():
        names = [list(header.class_names), list(dataset.class_names())]
        raise BadInput(
            f"{path}: has the {len(names[0])} classes of {header.dataset}, which are not the {len(names[1])} of"
            f" {dataset.name} ({files.difference(*names)}); name its --dataset and --data_path"
        )
    name, cpu = "student, exported", torch.device("cpu")
    if isinstance(network, nn.Module):
        network = network.to(device)
    elif device != cpu:
        name, device = f"{name}, on the CPU", cpu
    return Candidate(name, network, header.empty_network(), device, path.stat().st_size)


def of_module(name: str, network: nn.Module, dataset: ImageDataset, path: Path | None = None) -> Candidate:
    """A network on normalised images. path: its file."""
    module = OnRawImages(network, dataset.normalization)
    device = next(network.parameters()).device
    return Candidate(name, module, module, device, path.stat().st_size if path else None)
