"""Test accuracy of a teacher's or a student's file, ours or released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from acceleration.feature_cache import STARTS, CachedTeacher
from data.datasets import ImageDataset
from grafting.scions import scions
from models import checkpoints
from models.vgg import BlockwiseVGG, frozen, parameter_count


def evaluate(
    kind: str, state: Any, path: Path, teacher: BlockwiseVGG, dataset: ImageDataset, device: torch.device
) -> list[tuple[str, int, float]]:
    """(name, number of parameters, test accuracy in percent) of the teacher, or of each graft in the file.

    kind, state: from checkpoints.read(path). teacher: the network in the file, or the one that its scions are grafted
    into.
    """
    network = frozen(teacher).to(device, memory_format=torch.channels_last)
    cached_teacher = CachedTeacher(network, dataset.normalization, dataset.test(), subsets=[], budget=0)
    if kind == "teacher":
        name = "teacher" if network.architecture.batchnorm else "student without adapters"
        return [(name, parameter_count(network), cached_teacher.accuracy(nn.Identity(), len(network)))]
    student = nn.Sequential(*scions(network.architecture, network.classes, torch.Generator()))
    if kind == "stage 2":
        checkpoints.load(student, state, path)
        grafts = [("student (L=3)", student, (STARTS[0], len(network)))]
    else:
        for scion, scion_state in zip(student, state, strict=True):
            checkpoints.load(scion, scion_state, path)
        grafts = [(f"B{k} alone", student[k : k + 1], (start, start + 1)) for k, start in enumerate(STARTS)]
    return [
        (
            name,
            sum(map(parameter_count, (network[:i], scion, network[j:]))),
            cached_teacher.accuracy(nn.Sequential(scion.to(device), network[j:]), i),
        )
        for name, scion, (i, j) in grafts
    ]
