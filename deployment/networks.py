"""What a file holds, as networks that take raw images: a teacher, a student of stage 1 or 2, or an exported one."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.datasets import ImageDataset
from deployment.evaluation import TEACHER, Candidate
from deployment.export import OnRawImages
from deployment.formats import Header, Network, empty_network
from deployment.plain import deployed
from grafting.scions import scions
from grafting.students import empty_student, graft_of, load_plain
from grafting.teacher import FrozenTeacher
from models import checkpoints
from models.architectures import student_of
from models.checkpoints import State
from models.networks import Networks, frozen
from models.vgg import BlockwiseVGG, cut
from utils import files
from utils.errors import BadInput

PLAIN = "student without adapters"


def student_in(kind: str, state: State, path: Path, teacher: FrozenTeacher) -> nn.Sequential:
    """The whole student of a file, frozen, on the teacher's device: normalised images -> logits.

    kind, state: from checkpoints.read(path): "stage 2", or "network" for a student without adapters. Raises BadInput if
    the file holds no student of this teacher.
    """
    networks = teacher.networks
    if kind == "network" and not networks.is_vgg:
        return plain_student_in(state, path, networks, teacher.classes, teacher.image_size).to(teacher.device)
    if kind == "stage 2":
        student = nn.Sequential(*scions(teacher, torch.Generator()))
        checkpoints.load(student, state, path)
        return frozen(graft_of(teacher, student.to(teacher.device)))
    network = checkpoints.vgg_from_state(state, path, teacher.classes)
    if not is_plain_student_of(network, teacher):
        raise BadInput(
            f"{path}: is no student of this teacher, with {networks.student_width:g} of its channels in the blocks"
            f" {networks.first}-{networks.last}; name a student (...-net-...), its --student_width and --grafted, and"
            " the teacher that it was made with by --teacher"
        )
    blocks = cut(network)[networks.first : networks.last + 1].to(teacher.device)
    return frozen(graft_of(teacher, nn.Sequential(*map(nn.Sequential, blocks))))


def plain_student_in(state: State, path: Path, networks: Networks, classes: int, image_size: int) -> nn.Sequential:
    """The blocks of a student without adapters, from its plain state. Raises BadInput where it does not fit."""
    return load_plain(networks, empty_student(networks, classes, image_size), state, path, classes)


def is_plain_student_of(network: nn.Module, teacher: FrozenTeacher) -> bool:
    """Whether a student without adapters, a VGG or other blocks in sequence, was made with this teacher.

    It has the teacher's blocks in front of the first grafted one; that of a VGG has the student's widths.
    """
    if isinstance(network, BlockwiseVGG):
        networks = teacher.networks
        if network.architecture != student_of(networks.vgg, networks.student_width, networks.grafted):
            return False
        network = cut(network)
    ours, theirs = (checkpoints.on_cpu(blocks[: teacher.networks.first]) for blocks in (network, teacher.blocks))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def whole(state: State, path: Path, networks: Networks, dataset: ImageDataset, device: torch.device) -> Candidate:
    """A whole network in a file: a teacher, or a student without adapters. Raises BadInput for any other."""
    name = TEACHER
    if networks.is_vgg:
        network = checkpoints.vgg_from_state(state, path, dataset.classes)
        name = TEACHER if network.architecture.batchnorm else PLAIN
    else:
        try:
            network = checkpoints.network_from_state(networks.teacher, state, path, dataset.classes)
        except BadInput as fault:
            try:
                name = PLAIN
                network = plain_student_in(state, path, networks, dataset.classes, dataset.image_size)
            except BadInput:
                raise fault from None
    network = frozen(network).to(device, memory_format=torch.channels_last)
    return Candidate(name, OnRawImages(network, dataset.normalization), path)


def candidates(kind: str, state: Any, path: Path, teacher: FrozenTeacher, dataset: ImageDataset) -> list[Candidate]:
    """The teacher and what is in the file beside it: a student with its adapters and folded, or stage 1's scions alone.

    kind, state: from checkpoints.read(path).
    """
    networks, found = teacher.networks, [Candidate(TEACHER, OnRawImages(teacher.network, dataset.normalization))]
    if kind == "stage 2":
        student = student_in(kind, state, path, teacher)
        name = f"student (L={len(networks.grafted)})"
        found.append(Candidate(name, OnRawImages(student, dataset.normalization), path))
        if networks.is_vgg:
            found.append(Candidate("student, folded", deployed(teacher, student).to(teacher.device)))
        return found
    if len(state) != len(networks.grafted):
        raise BadInput(f"{path}: holds {len(state)} scions, this teacher has {len(networks.grafted)} blocks to graft")
    for k, scion in enumerate(scions(teacher, torch.Generator())):
        checkpoints.load(scion, state[k], path)
        before, behind = teacher.blocks[: networks.first + k], teacher.blocks[networks.first + k + 1 :]
        graft = nn.Sequential(before, frozen(scion).to(teacher.device), behind)
        found.append(Candidate(f"B{k} alone", OnRawImages(graft, dataset.normalization)))
    return found


def exported(path: Path, network: Network, header: Header, dataset: ImageDataset, device: torch.device) -> Candidate:
    """An exported student, as formats.read() gives it: a module on the device, other formats on the CPU.

    Raises BadInput if its classes or the size of its images are not the data set's.
    """
    if header["image_size"] != dataset.image_size:
        size = header["image_size"]
        raise BadInput(f"{path}: is for images of {size} pixels, not {dataset.image_size}; add --image_size {size}")
    theirs, ours = header["class_names"], list(dataset.class_names())
    if theirs != ours:
        raise BadInput(
            f"{path}: has the {len(theirs)} classes of {header['dataset']}, which are not the {len(ours)} of"
            f" {dataset.name} ({files.difference(theirs, ours)}); name its --dataset and --data_path"
        )
    if isinstance(network, nn.Module):
        return Candidate("student, exported", network.to(device), path)
    name = "student, exported" if device.type == "cpu" else "student, exported, on the CPU"
    return Candidate(name, network, path, empty_network(header) or tuple(header["counts"]))
