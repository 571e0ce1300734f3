"""The temperature is the one that minimises the cross-entropy; calibration figures against values by hand."""

import math

import numpy as np
import pytest
import torch
from small import pictures
from torch.nn import functional

from deployment.calibration import (
    calibration_views,
    expected_calibration_error,
    fitted_temperature,
    logits_of,
    negative_log_likelihood,
)


def random_logits(seed):
    return 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_a_student_that_is_a_multiple_of_the_teacher_gets_the_teachers_probabilities(scale):
    teacher = random_logits(0)
    assert fitted_temperature(scale * teacher, teacher) == pytest.approx(scale, rel=1e-6)


def test_no_other_temperature_has_a_smaller_cross_entropy():
    teacher, student = random_logits(0), random_logits(0) + random_logits(1)
    fitted = fitted_temperature(student, teacher)

    def loss(temperature):
        return functional.cross_entropy(student / temperature, teacher.softmax(1)).item()

    assert loss(fitted) < min(loss(0.98 * fitted), loss(1.02 * fitted))


def test_calibration_error_and_likelihood_by_hand():
    """Four images at confidence 0.8, three of them right: 5 points; four at 0.6, one right: 35 points."""
    logits = torch.tensor([[p, 1 - p] for p in [0.8] * 4 + [0.6] * 4]).log()
    labels = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1])
    assert expected_calibration_error(logits, labels) == pytest.approx((5 + 35) / 2, abs=1e-4)

    certain = torch.tensor([[1000.0, 0.0]])
    assert [expected_calibration_error(certain, torch.tensor([label])) for label in (0, 1)] == [0, 100]
    likelihood = negative_log_likelihood(logits[[0, 4]], torch.tensor([0, 1]))
    assert likelihood == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2, rel=1e-6)


def test_views_are_views_of_the_images_and_always_the_same():
    images = pictures(3)
    views = calibration_views(images, 32)
    assert views.shape == (2000, 3, 32, 32) and torch.equal(views, calibration_views(images, 32))
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)))
    crops = [padded[:, :, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    by_image = [{crop[k, :, :, ::step].tobytes() for crop in crops for step in (1, -1)} for k in range(3)]
    shown = {view.numpy().tobytes() for view in views}
    assert shown <= set.union(*by_image)
    assert all(len(possible) == 162 and len(possible & shown) > 150 for possible in by_image)  # of 2000 draws


def test_logits_do_not_depend_on_the_batch(teacher, dataset):
    images = torch.from_numpy(pictures(7))

    def network(batch):
        return teacher(dataset.normalization(batch))

    in_one, in_parts = (logits_of(network, images, torch.device("cpu"), batch) for batch in (7, 3))
    assert torch.allclose(in_one, in_parts, rtol=1e-5) and len(in_parts) == 7
