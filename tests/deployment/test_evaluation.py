"""Figures of networks side by side, against values by hand."""

import math

import pytest
import torch
from small import dataset_not_in_memory, frozen_teacher, pictures, small_teacher
from torch import nn

from deployment import evaluation
from deployment.evaluation import TEACHER, Candidate, compare, count, expected_calibration_error, markdown
from deployment.export import OnRawImages
from deployment.formats import logits_of
from deployment.networks import candidates
from grafting.scions import scions
from models.logits import LogitsNotFinite
from models.networks import frozen, parameter_count


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


@pytest.fixture
def candidate(tmp_path):
    (tmp_path / "network.pth").write_bytes(bytes(1_200_000))
    return lambda k, name=None: Candidate(name or f"always {k}", frozen(Constant(k)), tmp_path / "network.pth")


def test_accuracies_and_agreement(dataset, candidate):
    first, second = compare([candidate(0, TEACHER), candidate(1)], dataset)
    share = 100 * (dataset.test().labels == 0).mean()
    assert first.accuracy == pytest.approx(share) and first.by_class == {"a": 100, "b": 0, "c": 0}
    assert (first.agreement, second.agreement) == (100, 0)
    assert first.calibration_error == pytest.approx(100 - share, abs=0.1)
    likelihoods = (math.log(math.exp(10) + 2) - 10 * right / 100 for right in (share, second.accuracy))
    assert (first.nll, second.nll) == pytest.approx(tuple(likelihoods))
    assert first.parameters == 3 and first.latency_ms > 0 and first.images_per_second > 0
    lines = markdown([first, second]).splitlines()
    assert lines[-1] == "always 1: lowest classes a 0.0%, c 0.0%, b 100.0%"
    assert lines[2].startswith("| teacher | 3 | 0 | 1.2 | ")

    (alone,) = compare([candidate(0)], dataset)
    assert alone.agreement is None and markdown([alone]).splitlines()[2].split(" | ")[5] == "-"


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_logits_that_are_not_finite_are_refused(dataset, candidate, value):
    broken = candidate(1)
    broken.network.logits.data[0] = value
    with pytest.raises(LogitsNotFinite, match="the logits of the always 1 are not finite"):
        compare([candidate(0, TEACHER), broken], dataset)


def test_calibration_error_by_hand():
    """Four images at confidence 0.8, three of them right: 5 points; four at 0.6, one right: 35 points."""
    logits = torch.tensor([[p, 1 - p] for p in [0.8] * 4 + [0.6] * 4]).log()
    labels = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1])
    assert expected_calibration_error(logits, labels) == pytest.approx((5 + 35) / 2, abs=1e-4)

    certain = torch.tensor([[1000.0, 0.0]])
    assert [expected_calibration_error(certain, torch.tensor([label])) for label in (0, 1)] == [0, 100]


def test_logits_do_not_depend_on_the_batch(teacher, dataset):
    images = torch.from_numpy(pictures(7))

    def network(batch):
        return teacher(dataset.normalization(batch))

    in_one, in_parts = (logits_of(network, images, torch.device("cpu"), batch) for batch in (7, 3))
    assert torch.allclose(in_one, in_parts, rtol=1e-5) and len(in_parts) == 7


def test_images_that_are_not_in_memory_give_the_same_logits(teacher, dataset):
    network = OnRawImages(teacher, dataset.normalization)
    of_both = [logits_of(network, d.test().images, torch.device("cpu"), 7) for d in (dataset, dataset_not_in_memory())]
    assert torch.equal(*of_both)


def test_multiply_adds_by_hand(dataset):
    """Widths 4, 4, 8, 8-8, 8 on 32x32 to 2x2 pixels; 8-8 and 8-3 linear."""
    network = OnRawImages(small_teacher(), dataset.normalization)
    by_hand = 1024 * 27 * 4 + 256 * 36 * 4 + 64 * 36 * 8 + 16 * 72 * 8 * 2 + 4 * 72 * 8 + 64 + 24
    assert count(network, 32) == (parameter_count(network), by_hand)


def test_stage_2_is_measured_with_adapters_and_folded(dataset, tmp_path):
    teacher = frozen_teacher()
    student = nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0)))
    path = tmp_path / "student.pth"
    torch.save(student.state_dict(), path)
    rows = compare(candidates("stage 2", student.state_dict(), path, teacher, dataset), dataset)
    assert [row.name for row in rows] == ["teacher", "student (L=3)", "student, folded"]
    assert rows[1].accuracy == rows[2].accuracy and rows[1].by_class == rows[2].by_class
    assert rows[2].parameters < rows[1].parameters and rows[2].multiply_adds < rows[1].multiply_adds
