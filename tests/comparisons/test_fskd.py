"""Methods that train nothing: which images they use, and what FSKD's student keeps of the teacher's classifier."""

import pytest
import torch
from small import frozen_teacher, pictures, small_job, small_training
from torch import nn

from comparisons.fskd import strongest
from comparisons.nearest_class_mean import class_means
from data.views import Views
from grafting.distillation import NotFinite
from grafting.inputs import Inputs
from grafting.least_squares import Place
from grafting.mixed_views import MixedInputs
from models.architectures import FIRST_GRAFTED
from models.vgg import convolutions

MIDDLE = Views(32).middle


@pytest.fixture
def frozen(teacher):
    return frozen_teacher(teacher)


@pytest.mark.parametrize("method", ["least-squares", "least-squares-images", "fskd"])
def test_the_views_that_a_method_uses(teacher, frozen, tmp_path, monkeypatch, method):
    """All mixed views, or the image alone; each once for the loss."""
    used, features = {start: [] for start in range(7)}, Inputs.features

    def noting(inputs, start, image, view):
        kind = "mixed" if isinstance(inputs, MixedInputs) else "plain"
        used[start] += [(kind, *pair) for pair in zip(image.tolist(), view.tolist(), strict=True)]
        return features(inputs, start, image, view)

    monkeypatch.setattr(Inputs, "features", noting)
    job = small_job(tmp_path, "--method", method, network=teacher)
    training = small_training(job, frozen, pictures(3), 1)
    training.method.train(job.recipe, training)
    kind, views = ("mixed", range(160)) if method == "least-squares" else ("plain", [MIDDLE])
    expected = [(kind, image, view) for image in range(3) for view in views]
    assert sorted(used[6]) == expected and set(used[3]) == set(used[4]) == set(expected)
    assert set(used[5]) == (set() if method == "fskd" else set(expected))
    assert training.cell.setting.get("augmentation") == ("mixed views" if method == "least-squares" else None)


def test_fskd_keeps_the_filters_with_the_largest_norms_in_their_order(frozen):
    layer = frozen.blocks[4][0]
    for index, size in enumerate((2.0, 3.0, -5.0, 1.0, 0.0, 4.0, 0.5, 0.1)):
        layer.weight[index] = size
    channels, weight, bias = strongest(Inputs(frozen, pictures(1)), [], Place(4, 0, 2), 3)
    assert channels.tolist() == [1, 2, 5] and bias.eq(0).all()
    assert weight.nonzero().tolist() == [[1, 0], [2, 1], [5, 2]] and weight.max() == 1  # of the others, nothing


def test_fskd_keeps_the_columns_of_the_classifier_and_least_squares_solves_them(teacher, frozen, tmp_path):
    first_linear = {}
    for method in ("fskd", "least-squares-images"):
        training = small_training(small_job(tmp_path, "--method", method, network=teacher), frozen, pictures(3), 1)
        training.method.train(training.cell.job.recipe, training)
        first_linear[method] = training.networks[-1][0][1][0].weight
    last = len(frozen.blocks[4]) - 3
    channels = strongest(Inputs(frozen, pictures(3)), [], Place(4, last, last + 3), 4).channels
    kept = nn.utils.fusion.fuse_linear_bn_eval(*teacher.classifier[:2]).weight[:, channels]
    assert torch.equal(first_linear["fskd"], kept)
    assert not torch.allclose(first_linear["least-squares-images"], kept, atol=1e-3)


def test_outputs_that_overflow_are_no_result(teacher, frozen, tmp_path):
    """PyTorch's least squares would end the sweep."""
    for layer in convolutions(teacher)[-2:]:
        layer.weight.mul_(1e25)
    training = small_training(
        small_job(tmp_path, "--method", "least-squares-images", network=teacher), frozen, pictures(1), 1
    )
    with pytest.raises(NotFinite):
        training.run()
    assert not training.written


def test_the_nearest_class_mean_has_no_student_and_classifies_its_own_images(teacher, frozen, tmp_path):
    """One picture of each class: each has the largest cosine to itself."""
    images = pictures(3)
    training = small_training(small_job(tmp_path, "--method", "nearest-class-mean", network=teacher), frozen, images, 1)
    training.run()
    inputs = Inputs(frozen, images)
    features = inputs.features(FIRST_GRAFTED, torch.arange(3), torch.full((3,), MIDDLE))
    assert training.networks[0](features).argmax(1).tolist() == [0, 1, 2]
    assert not training.written and not list(tmp_path.glob("**/*.pth"))
    assert torch.allclose(class_means(inputs).norm(dim=1), torch.ones(3))
