"""Figures of networks side by side, against values by hand."""

import pytest
import torch
from small import frozen_teacher, small_teacher
from torch import nn

from deployment import evaluation
from deployment.evaluation import TEACHER, Candidate, compare, lowest_classes, markdown, multiply_adds
from deployment.export import OnRawImages
from deployment.networks import candidates
from grafting.scions import scions
from models.networks import frozen


class Constant(nn.Module):
    """Says class `k` of three, whatever the image is."""

    def __init__(self, k):
        super().__init__()
        self.logits = nn.Parameter(10 * torch.eye(3)[k])

    def forward(self, images):
        return self.logits.expand(len(images), 3)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(evaluation, "ROUNDS", {1: 1, 256: 1})


def candidate(k, name=None):
    network = frozen(Constant(k))
    return Candidate(name or f"always {k}", network, network, torch.device("cpu"), 1000)


def test_accuracies_and_agreement(dataset):
    first, second = compare([candidate(0, TEACHER), candidate(1)], dataset)
    share = 100 * (dataset.test().labels == 0).mean()
    assert first.accuracy == pytest.approx(share) and first.by_class == {"a": 100, "b": 0, "c": 0}
    assert (first.agreement, second.agreement) == (100, 0)
    assert first.calibration_error == pytest.approx(100 - share, abs=0.1)
    assert first.parameters == 3 and first.latency_ms > 0 and first.images_per_second > 0
    assert lowest_classes(second) == "always 1: lowest classes a 0.0%, c 0.0%, b 100.0%"
    assert markdown([first, second]).splitlines()[2].startswith("| teacher | 3 | 0 | 0.0 | ")

    (alone,) = compare([candidate(0)], dataset)
    assert alone.agreement is None and markdown([alone]).splitlines()[2].split(" | ")[5] == "-"


def test_multiply_adds_by_hand(dataset):
    """Widths 4, 4, 8, 8-8, 8 on 32x32 to 2x2 pixels; 8-8 and 8-3 linear."""
    network = OnRawImages(small_teacher(), dataset.normalization)
    by_hand = 1024 * 27 * 4 + 256 * 36 * 4 + 64 * 36 * 8 + 16 * 72 * 8 * 2 + 4 * 72 * 8 + 64 + 24
    assert multiply_adds(network, 32) == by_hand


def test_stage_2_is_measured_with_adapters_and_folded(dataset, tmp_path):
    teacher = frozen_teacher()
    student = nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0)))
    path = tmp_path / "student.pth"
    torch.save(student.state_dict(), path)
    rows = compare(candidates("stage 2", student.state_dict(), path, teacher, dataset), dataset)
    assert [row.name for row in rows] == ["teacher", "student (L=3)", "student, folded"]
    assert rows[1].accuracy == rows[2].accuracy and rows[1].by_class == rows[2].by_class
    assert rows[2].parameters < rows[1].parameters and rows[2].multiply_adds < rows[1].multiply_adds
