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
from grafting.scions import scions
from models import checkpoints, records
from models.checkpoints import State
from models.vgg import FIRST_GRAFTED, BlockwiseVGG, frozen, student_of
from utils import files
from utils.errors import BadInput


def student_in(kind: str, state: State, path: Path, teacher: BlockwiseVGG) -> nn.Sequential:
    """The sequence (B0, B1, B2) of a student's file, frozen, on the teacher's device.

    kind, state: from checkpoints.read(path): "stage 2", or "teacher" for a student without adapters
    (comparisons/plain_student.py), which gets adapters that change nothing. Raises BadInput if the file holds no
    student of this teacher.
    """
    student = nn.Sequential(*scions(teacher.architecture, teacher.classes, torch.Generator()))
    if kind == "stage 2":
        checkpoints.load(student, state, path)
    else:
        _load_without_adapters(student, checkpoints.teacher_from_state(state, path, teacher.classes), path, teacher)
    return frozen(student).to(next(teacher.parameters()).device)


def _load_without_adapters(student: nn.Sequential, network: BlockwiseVGG, path: Path, teacher: BlockwiseVGG) -> None:
    """Load a whole network into the scions (B0, B1, B2)."""
    if not is_plain_student_of(network, teacher):
        raise BadInput(
            f"{path}: is no student of this teacher: a student has the teacher's blocks 0 to 2, and blocks 3 and 4 of"
            " half the width; name a student (...-net-...), and the teacher that it was made with by --teacher"
        )
    (block3, s2t0), (t2s0, block4, s2t1), (t2s1, (_, classifier)) = student
    for adapter in (s2t0, t2s0, s2t1, t2s1):
        nn.init.dirac_(adapter.weight)
        nn.init.zeros_(adapter.bias)
    block3.load_state_dict(network.features[FIRST_GRAFTED].state_dict())
    block4.load_state_dict(network.features[FIRST_GRAFTED + 1].state_dict())
    classifier.load_state_dict(network.classifier.state_dict())


def is_plain_student_of(network: BlockwiseVGG, teacher: BlockwiseVGG) -> bool:
    """Whether the network is a student of this teacher: its blocks 0 to 2, and the others at half the width."""
    if network.architecture != student_of(teacher.architecture):
        return False
    ours, theirs = checkpoints.on_cpu(network[:FIRST_GRAFTED]), checkpoints.on_cpu(teacher[:FIRST_GRAFTED])
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


def candidates(kind: str, state: Any, path: Path, teacher: BlockwiseVGG, dataset: ImageDataset) -> list[Candidate]:
    """The teacher and what is in the file beside it.

    kind, state: from checkpoints.read(path). teacher: frozen, on its device; the network in the file if that is one.
    Stage 1 gives each scion alone in the teacher, stage 2 the student with its adapters and folded.
    """
    if kind == "teacher":
        name = TEACHER if teacher.architecture.batchnorm else "student without adapters"
        return [of_module(name, teacher, dataset, path)]
    found = [of_module(TEACHER, teacher, dataset)]
    if kind == "stage 2":
        student = student_in(kind, state, path, teacher)
        found.append(of_module("student (L=3)", nn.Sequential(teacher[:FIRST_GRAFTED], *student), dataset, path))
        folded = fold(teacher, student, dataset.normalization).to(found[0].device)
        return [*found, Candidate("student, folded", folded, folded, found[0].device)]
    for k, scion in enumerate(scions(teacher.architecture, teacher.classes, torch.Generator())):
        checkpoints.load(scion, state[k], path)
        block = FIRST_GRAFTED + k
        graft = nn.Sequential(teacher[:block], frozen(scion).to(found[0].device), teacher[block + 1 :])
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
