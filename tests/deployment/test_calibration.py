"""The temperature is the one that minimises the cross-entropy, and is fitted on views of the few-shot images."""

import numpy as np
import pytest
import torch
from small import pictures
from torch.nn import functional

from deployment.export import calibration_views, fitted_temperature


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
