import pytest
import torch
from small import CLASSES, TINY, small_teacher
from torch import nn
from torch.nn import functional

from acceleration.winograd import (
    ALGORITHMS,
    WINOGRAD_FROM,
    Convolution,
    MaxPool,
    as_matrix_products,
)
from grafting.scions import scions
from models.vgg import ARCHITECTURES, BlockwiseVGG, frozen, initialize


@pytest.mark.parametrize("side", ALGORITHMS)
def test_the_algorithms_are_convolutions_exactly(side):
    a, g, b = (torch.tensor(matrix, dtype=torch.float64) for matrix in ALGORITHMS[side])
    kernels, maps = torch.eye(3, dtype=torch.float64), torch.eye(side, dtype=torch.float64)
    for kernel in kernels:  # bilinear, so that unit vectors say it all
        for pixels in maps:
            expected = functional.conv1d(pixels[None, None], kernel[None, None], padding=1)[0, 0]
            assert torch.allclose(a @ ((g @ kernel / 24) * (b @ pixels)), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("side", ALGORITHMS)
@pytest.mark.parametrize("batch", [WINOGRAD_FROM - 1, WINOGRAD_FROM])
def test_convolution(side, batch):
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 3, padding=1)
    maps = torch.randn(batch, 5, side, side)
    found = Convolution(layer, side)(maps.permute(2, 3, 0, 1).flatten(0, 1))
    assert torch.allclose(found.unflatten(0, (side, side)).permute(2, 3, 0, 1), layer(maps), atol=1e-5)


def test_max_pool():
    maps = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = MaxPool()(maps.permute(2, 3, 0, 1).flatten(0, 1))
    assert torch.equal(found.unflatten(0, (2, 2)).permute(2, 3, 0, 1), functional.max_pool2d(maps, 2))


@pytest.mark.parametrize("span", [(3, 4), (4, 5), (5, 6), (3, 5), (3, 6)])
def test_every_graft(span):
    """Every phase's scion and tail, a BatchNorm of the teacher's included."""
    teacher = small_teacher()
    scion = nn.Sequential(*scions(TINY, CLASSES, torch.Generator().manual_seed(0))[span[0] - 3 : span[1] - 3])
    network = nn.Sequential(scion, teacher[span[1] :])
    features = teacher[: span[0]](torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    expected = network(features)
    with torch.no_grad():
        fast = as_matrix_products(network, features.shape[-1])
    assert torch.allclose(fast(features), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert not any(parameter.requires_grad for parameter in fast.parameters())


@pytest.mark.parametrize("span", [(3, 4), (4, 5), (5, 6), (3, 5), (3, 6)])
@pytest.mark.parametrize("batch", [WINOGRAD_FROM - 1, WINOGRAD_FROM])
def test_gradients(span, batch, monkeypatch):
    """Of the scion's parameters, as those of the network itself; in small batches without Winograd's algorithm."""
    teacher = small_teacher()
    scion = nn.Sequential(*scions(TINY, CLASSES, torch.Generator().manual_seed(0))[span[0] - 3 : span[1] - 3])
    network = nn.Sequential(scion, teacher[span[1] :])
    features = teacher[: span[0]](torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    transforms = []
    monkeypatch.setattr(
        Convolution, "transformed", lambda *given, plain=Convolution.transformed: transforms.append(1) or plain(*given)
    )
    fast = as_matrix_products(network, features.shape[-1])
    once = len(transforms)
    found, expected = (
        torch.autograd.grad(trained(features).square().sum(), tuple(scion.parameters())) for trained in (fast, network)
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert gradient.shape == reference.shape
        assert torch.allclose(gradient, reference, rtol=0, atol=1e-5 * reference.abs().max().item())
    trained = sum(layer.kernel_size == (3, 3) for layer in scion.modules() if isinstance(layer, nn.Conv2d))
    assert len(transforms) - once == (trained if batch >= WINOGRAD_FROM else 0)


@pytest.mark.parametrize(("span", "shape"), [((3, 4), (8, 2, 2)), ((4, 5), (8, 1, 1)), ((3, 5), (8, 1, 1))])
@pytest.mark.parametrize("batch", [WINOGRAD_FROM - 1, WINOGRAD_FROM])
def test_networks_that_end_in_feature_maps(span, shape, batch):
    """Their maps and the gradients of their parameters."""
    scion = nn.Sequential(*scions(TINY, CLASSES, torch.Generator().manual_seed(0))[span[0] - 3 : span[1] - 3])
    features = small_teacher()[: span[0]](torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    fast = as_matrix_products(scion, features.shape[-1])
    found, expected = fast(features), scion(features)
    assert found.shape == expected.shape == (batch, *shape)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    found, expected = (
        torch.autograd.grad(outputs.square().sum(), tuple(scion.parameters())) for outputs in (found, expected)
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert torch.allclose(gradient, reference, rtol=0, atol=1e-5 * reference.abs().max().item())


def test_training_through_products_changes_the_network():
    """The parameters are shared, so what the optimiser changes is what the next step and the network itself use."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5, 4))
    fast, maps = as_matrix_products(network, 2), torch.randn(6, 3, 2, 2)
    fast(maps).sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert torch.allclose(fast(maps), network(maps), atol=1e-5)


@pytest.mark.parametrize("name", ["vgg11", "vgg19"])
def test_other_depths(name):
    network = frozen(initialize(BlockwiseVGG(ARCHITECTURES[name], 10), torch.Generator().manual_seed(0)))[3:]
    features = torch.rand(WINOGRAD_FROM, 256, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = network(features)
    found = as_matrix_products(network, 4)(features)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_layer_that_occurs_twice_is_used_twice():
    torch.manual_seed(0)
    twice = nn.Conv2d(5, 5, 3, padding=1)
    network, maps = nn.Sequential(twice, nn.ReLU(), twice), torch.randn(3, 5, 4, 4)
    assert torch.allclose(as_matrix_products(network, 4)(maps), network(maps), atol=1e-5)


def test_a_layer_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="Sigmoid has no form as matrix products"):
        as_matrix_products(nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.Sigmoid()), 4)


def test_linear_layers_become_one():
    scion = nn.Sequential(*scions(TINY, CLASSES, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        names = [type(layer).__name__ for layer in as_matrix_products(scion, 4)]
    block3, between, block4 = ["Convolution", "ReLU"] * 2, ["Affine"], ["Convolution", "ReLU"]
    assert names == ["ToRows", *block3, "MaxPool", *between, *block4, "MaxPool", "Affine", "OnlyPixel"]
