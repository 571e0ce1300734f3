import math

import pytest
import torch

from comparisons.fitnets import Hint
from comparisons.kd import Softened


def test_softened_probabilities_by_hand():
    """Logits (T ln 3, 0) are probabilities (3/4, 1/4) at temperature T; the student's are (1/2, 1/2)."""
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    for temperature in (1.0, 4.0):
        teacher = torch.tensor([[temperature * math.log(3), 0.0]] * 2)
        loss = Softened(temperature)(torch.zeros(2, 2), teacher)
        assert loss.item() == pytest.approx(2 * temperature**2 * divergence, rel=1e-5)  # two images


def test_softened_probabilities_do_not_see_a_shift_of_the_logits():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert Softened(2.0)(logits + 7, logits).item() == pytest.approx(0, abs=1e-5)


def test_a_hint_by_hand():
    student, teacher = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    assert Hint()(student, teacher).item() == 0.5 * 2 * 4 * 9
