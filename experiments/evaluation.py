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
    """(what, its parameters, test accuracy in percent): the teacher, or each graft that the file holds.

    kind, state: from checkpoints.read(path). teacher: the file's own network, or the one its scions belong in.
    """
    network = frozen(teacher).to(device, memory_format=torch.channels_last)
    store = CachedTeacher(network, dataset.normalization, dataset.test(), subsets=[], budget=0)
    if kind == "teacher":
        return [("teacher", parameter_count(network), store.accuracy(nn.Identity(), len(network)))]
    student = nn.Sequential(*scions(network.architecture, network.classes, torch.Generator()))
    if kind == "stage 2":
        checkpoints.load(student, state, path)
        grafts = [("student (L=3)", student, (STARTS[0], len(network)))]
    else:
        for scion, own in zip(student, state, strict=True):
            checkpoints.load(scion, own, path)
        grafts = [(f"B{k} alone", student[k : k + 1], (start, start + 1)) for k, start in enumerate(STARTS)]
    return [
        (
            name,
            sum(map(parameter_count, (network[:i], scion, network[j:]))),
            store.accuracy(nn.Sequential(scion.to(device), network[j:]), i),
        )
        for name, scion, (i, j) in grafts
    ]
