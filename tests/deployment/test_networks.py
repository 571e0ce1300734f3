"""What a student's file holds, as scions."""

from pathlib import Path

import pytest
import torch
from small import frozen_teacher, small_dataset
from torch import nn

from deployment.networks import candidates, student_in
from grafting.scions import scions
from models.networks import frozen, initialize
from models.vgg import cut
from utils.errors import BadInput

FILE = Path("student.pth")


def plain_student(teacher):
    """A student without adapters: the teacher's blocks 0 to 2, and fresh blocks."""
    network = initialize(teacher.networks.student(teacher.classes), torch.Generator().manual_seed(1))
    for ours, theirs in zip(cut(network)[:3], teacher.blocks[:3], strict=True):
        ours.load_state_dict(theirs.state_dict())
    return frozen(network)


def test_a_student_without_adapters_becomes_scions_that_compute_the_same():
    teacher = frozen_teacher()
    network = plain_student(teacher)
    random = torch.Generator().manual_seed(0)
    for layer in cut(network)[3:].modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.bias, 0.0, 0.3, generator=random)
    student = student_in("network", network.state_dict(), FILE, teacher)
    images = torch.randn(4, 3, 32, 32, generator=random)
    with torch.no_grad():
        expected = network(images)
        found = student(images)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max() and expected.std() > 0.01


def test_a_teacher_and_the_student_of_another_teacher_are_refused():
    teacher = frozen_teacher()
    of_another = plain_student(teacher).state_dict()
    of_another["features.2.0.bias"] = of_another["features.2.0.bias"] + 1e-6
    for state in (teacher.network.state_dict(), of_another):
        with pytest.raises(BadInput, match=r"student\.pth: is no student of this teacher"):
            student_in("network", state, FILE, teacher)


def test_stage_1_of_another_number_of_scions_is_refused():
    teacher = frozen_teacher()
    states = [scion.state_dict() for scion in scions(teacher, torch.Generator())]
    for wrong in (states[:2], [*states, states[0]]):
        with pytest.raises(BadInput, match=rf"x\.pth: holds {len(wrong)} scions, this teacher has 3 blocks to graft"):
            candidates("stage 1", wrong, Path("x.pth"), teacher, small_dataset())
