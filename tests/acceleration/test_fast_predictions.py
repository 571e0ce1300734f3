"""Fast predictions are those of float32, however bad the fast logits are."""

import pytest
import torch
from torch import nn

from acceleration import fast_predictions as module
from acceleration.fast_predictions import fast_predictions, lead
from models.logits import LogitsNotFinite


@pytest.fixture
def network():
    """Four classes read off a 2x2 map."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 8, 3, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4)).requires_grad_(False)


@pytest.fixture
def features():
    return torch.randn(4000, 6, 2, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def predict(network, features):
    """A function that predicts: (whether the classes are the network's own, how many images went through it)."""

    def predict():
        counts = []
        hook = network.register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
        found, _ = fast_predictions(network, features)
        hook.remove()
        return torch.equal(found, network(features).argmax(1)), sum(counts)

    return predict


class Noisy(nn.Module):
    """Fast arithmetic with errors of up to `noise`; `broken`: also this in one logit of some images."""

    def __init__(self, network, noise, broken=None):
        super().__init__()
        self.layers, self.noise, self.broken = list(network), noise, broken

    def forward(self, features):
        logits = nn.Sequential(*self.layers)(features.float())
        error = self.noise * (2 * torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)) - 1)
        if self.broken is not None:
            error[::70, 0] = self.broken
        return logits + error


@pytest.mark.parametrize(("noise", "least", "most"), [(1e-4, 250, 250), (0.03, 500, 3000), (100.0, 4000, 4000)])
def test_errors_of_any_size_change_nothing(network, features, predict, monkeypatch, noise, least, most):
    fast = Noisy(network, noise)
    monkeypatch.setattr(module, "products_or_itself", lambda *_: fast)
    same, count = predict()
    assert same and least <= count <= most
    assert noise < 0.01 or not torch.equal(fast(features).argmax(1), network(features).argmax(1))


@pytest.mark.parametrize(("value", "most"), [(torch.nan, 1000), (torch.inf, 4000), (-torch.inf, 4000)])
def test_what_is_not_finite_goes_through_the_network(network, predict, monkeypatch, value, most):
    monkeypatch.setattr(module, "products_or_itself", lambda *_: Noisy(network, 1e-4, broken=value))
    same, count = predict()
    assert same and count <= most


def test_an_image_that_looks_settled_but_has_a_logit_that_is_not_finite_goes_on(network, features, monkeypatch):
    features = features[:500]  # a batch
    sure = lead(network(features)).argmax()

    class Overflowing(nn.Module):
        def forward(self, features):
            logits = network(features)
            logits[sure, logits[sure].argmin()] = -torch.inf
            return logits

    monkeypatch.setattr(module, "products_or_itself", lambda *_: Overflowing())
    monkeypatch.setattr(module.machine, "has_fast_bfloat16", lambda device: False)
    assert torch.equal(fast_predictions(network, features)[0], network(features).argmax(1))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_logits_of_the_network_that_are_not_finite_are_refused(network, features, value):
    network[-1].bias[0] = value
    with pytest.raises(LogitsNotFinite):
        fast_predictions(network, features)


def test_fewer_images_than_a_batch_and_a_single_class(features):
    single = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 1))
    assert fast_predictions(single, features[:3])[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("hardware", [True, False])
def test_each_level_settles_what_the_one_before_leaves(network, features, monkeypatch, hardware):
    monkeypatch.setattr(module.machine, "has_fast_bfloat16", lambda device: hardware)
    predictions, settled = fast_predictions(network, features)
    first = ["bfloat16 products"] if hardware else []
    assert list(settled) == [*first, "float32 products", "network"] and sum(settled.values()) == len(features)
    assert torch.equal(predictions, network(features).argmax(1))
    assert 0 < settled["network"] <= 250
    if hardware:
        assert settled["bfloat16 products"] > 2000
        assert 250 <= settled["float32 products"] + settled["network"] < 1500


def test_bfloat16_is_left_out_where_it_settles_less_than_half(network, features, monkeypatch):
    """Its error on a logit grows with the logit, so a large bias on all classes drowns their differences."""
    monkeypatch.setattr(module.machine, "has_fast_bfloat16", lambda device: True)
    network[-1].bias += 100
    predictions, settled = fast_predictions(network, features)
    assert list(settled) == ["float32 products", "network"]
    assert torch.equal(predictions, network(features).argmax(1))


def test_a_network_without_a_form_as_products_settles_all(features):
    network = nn.Sequential(nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 4)).eval()
    predictions, settled = fast_predictions(network, features)
    assert settled == {"network": len(features)} and torch.equal(predictions, network(features).argmax(1))
