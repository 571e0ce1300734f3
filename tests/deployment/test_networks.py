"""What a student's file holds, as scions."""

from pathlib import Path

import pytest
import torch
from torch import nn

from comparisons import fskd
from deployment.networks import student_in
from models.vgg import FIRST_GRAFTED
from utils.errors import BadInput

FILE = Path("student.pth")


def test_a_student_without_adapters_becomes_scions_that_compute_the_same(teacher):
    network = fskd.pruned(teacher).eval()
    random = torch.Generator().manual_seed(0)
    for layer in network[FIRST_GRAFTED:].modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.bias, 0.0, 0.3, generator=random)
    student = student_in("teacher", network.state_dict(), FILE, teacher)
    images = torch.randn(4, 3, 32, 32, generator=random)
    with torch.no_grad():
        expected = network(images)
        found = nn.Sequential(teacher[:FIRST_GRAFTED], *student)(images)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max() and expected.std() > 0.01


def test_a_teacher_is_no_student(teacher):
    with pytest.raises(BadInput, match=r"student\.pth: is no student of this teacher"):
        student_in("teacher", teacher.state_dict(), FILE, teacher)


def test_the_student_of_another_teacher_is_refused(teacher):
    state = fskd.pruned(teacher).state_dict()
    state["features.2.0.bias"] = state["features.2.0.bias"] + 1e-6
    with pytest.raises(BadInput, match="is no student of this teacher"):
        student_in("teacher", state, FILE, teacher)
