import pytest
import torch
from small import frozen_teacher
from torch import nn
from torch.nn import functional

from acceleration.winograd import ALGORITHMS, WINOGRAD_FROM, Convolution, as_matrix_products, products_or_itself
from grafting.scions import scions
from models.architectures import Architecture
from models.networks import frozen, initialize
from models.vgg import BlockwiseVGG, cut

BATCHES = [WINOGRAD_FROM - 1, WINOGRAD_FROM]
SPANS = [(3, 4), (4, 5), (5, 6), (3, 5), (3, 6)]


def close(found, expected):
    return torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def scion_tail_and_features(span, batch):
    """Of the small teacher, a BatchNorm1d included."""
    teacher = frozen_teacher()
    scion = nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0))[span[0] - 3 : span[1] - 3])
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return scion, teacher.blocks[span[1] :], teacher.blocks[: span[0]](images)


@pytest.mark.parametrize("side", ALGORITHMS)
def test_the_algorithms_are_convolutions_exactly(side):
    a, g, b = (torch.tensor(matrix, dtype=torch.float64) for matrix in ALGORITHMS[side])
    kernels, maps = torch.eye(3, dtype=torch.float64), torch.eye(side, dtype=torch.float64)
    for kernel in kernels:  # bilinear, so that unit vectors say it all
        for pixels in maps:
            expected = functional.conv1d(pixels[None, None], kernel[None, None], padding=1)[0, 0]
            assert torch.allclose(a @ ((g @ kernel / 24) * (b @ pixels)), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("span", SPANS)
def test_every_graft_without_gradients(span):
    scion, tail, features = scion_tail_and_features(span, 9)
    network = nn.Sequential(scion, tail)
    with torch.no_grad():
        fast = as_matrix_products(network, features.shape[-1])
    assert close(fast(features), network(features))
    assert not any(parameter.requires_grad for parameter in fast.parameters())


@pytest.mark.parametrize(
    ("span", "with_tail"), [*((span, True) for span in SPANS), *((span, False) for span in SPANS if span[1] < 6)]
)
@pytest.mark.parametrize("batch", BATCHES)
def test_outputs_and_gradients(span, with_tail, batch, monkeypatch):
    """Logits or, without the tail, feature maps; in small batches without Winograd's algorithm."""
    transforms, plain = [], Convolution.transformed
    scion, tail, features = scion_tail_and_features(span, batch)
    network = nn.Sequential(scion, tail) if with_tail else scion
    monkeypatch.setattr(Convolution, "transformed", lambda *given: transforms.append(1) or plain(*given))
    fast = as_matrix_products(network, features.shape[-1])
    once = len(transforms)
    found, expected = fast(features), network(features)
    assert found.shape == expected.shape and close(found, expected)
    found, expected = (
        torch.autograd.grad(outputs.square().sum(), tuple(scion.parameters())) for outputs in (found, expected)
    )
    assert all(close(gradient, reference) for gradient, reference in zip(found, expected, strict=True))
    trained = sum(layer.kernel_size == (3, 3) for layer in scion.modules() if isinstance(layer, nn.Conv2d))
    assert len(transforms) - once == (trained if batch >= WINOGRAD_FROM else 0)


def test_training_through_products_changes_the_network():
    """The parameters are shared, so what the optimiser changes is what the next step and the network itself use."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5, 4))
    fast, maps = as_matrix_products(network, 2), torch.randn(6, 3, 2, 2)
    fast(maps).sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert torch.allclose(fast(maps), network(maps), atol=1e-5)


@pytest.mark.parametrize("convolutions", [1, 2, 4])
def test_other_depths(convolutions):
    architecture = Architecture(((8,) * convolutions,) * 5, hidden=8)
    network = frozen(initialize(BlockwiseVGG(architecture, 10), torch.Generator().manual_seed(0)))
    blocks, features = cut(network)[3:], torch.rand(9, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    assert close(as_matrix_products(blocks, 4)(features), blocks(features))


def test_a_layer_that_occurs_twice_is_used_twice():
    torch.manual_seed(0)
    twice = nn.Conv2d(5, 5, 3, padding=1)
    network, maps = nn.Sequential(twice, nn.ReLU(), twice), torch.randn(3, 5, 4, 4)
    assert torch.allclose(as_matrix_products(network, 4)(maps), network(maps), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Sigmoid(), 4),
        (nn.Conv2d(5, 5, 3), 4),
        (nn.Conv2d(5, 5, 3, padding=1, stride=2), 4),
        (nn.Conv2d(5, 5, 3, padding=1, bias=False), 4),
        (nn.Conv2d(5, 5, 3, padding=1, groups=5), 4),
        (nn.Conv2d(5, 5, 3, padding=1), 8),
        (nn.MaxPool2d(3), 4),
        (nn.MaxPool2d(2), 3),  # one row of pixels is left over
        (nn.BatchNorm2d(5).eval(), 4),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(5)), 1),  # in training mode
        (nn.Sequential(nn.Flatten(), nn.Linear(5 * 16, 5)), 4),
    ],
)
def test_what_has_no_form_as_products_is_refused_and_stays_as_it_is(layer, side):
    network = nn.Sequential(nn.Conv2d(5, 5, 1), nn.ReLU(), layer)
    network(torch.randn(2, 5, side, side))  # a network that works
    with torch.no_grad(), pytest.raises(TypeError, match=rf"has no form as matrix products on {side}x{side} pixels"):
        as_matrix_products(network, side)
    assert products_or_itself(network, (5, side, side)) is network


def test_linear_layers_become_one():
    scion, _, _ = scion_tail_and_features((3, 6), 2)
    with torch.no_grad():
        names = [type(layer).__name__ for layer in as_matrix_products(scion, 4)]
    block3, between, block4 = ["Convolution", "ReLU"] * 2, ["Affine"], ["Convolution", "ReLU"]
    assert names == ["ToRows", *block3, "MaxPool", *between, *block4, "MaxPool", "Affine", "Flatten"]
