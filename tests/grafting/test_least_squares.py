"""Least squares: which channels are kept, what is solved, and that absorbing changes nothing."""

import copy

import pytest
import torch
from small import frozen_teacher, pictures
from torch import nn

from acceleration.feature_cache import CachedTeacher
from data.views import Views
from grafting import least_squares
from grafting.inputs import Inputs
from models.architectures import FIRST_GRAFTED
from models.networks import vgg
from models.vgg import convolutions
from utils.precision import arithmetic

COUNT, MIDDLE = Views(32).count, Views(32).middle


@pytest.fixture
def frozen(teacher):
    return frozen_teacher(teacher)


def fit(frozen, images):
    inputs = Inputs(frozen, pictures(images))
    return least_squares.fitted(inputs, least_squares.all_views(inputs))[0]


def test_the_channels_that_are_kept_leave_least_unexplained():
    """Each choice is the best one in the layer that reads the channels, given those before it."""
    random = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(*size, generator=random, dtype=torch.float64) for size in ((50, 9), (7, 9)))
    rows = rows @ torch.randn(9, 9, generator=random, dtype=torch.float64)

    def unexplained(channels):
        found = torch.linalg.lstsq(rows[:, channels], rows).solution
        return ((rows - rows[:, channels] @ found) @ weight.T).square().sum().item()

    taken = []
    for count in range(1, 6):
        taken = min(([*taken, channel] for channel in range(9) if channel not in taken), key=unexplained)
        assert least_squares.greedy(rows.T @ rows, weight.T @ weight, count).tolist() == sorted(taken)


def test_channels_that_follow_from_the_kept_ones_are_predicted(frozen):
    """In a layer whose second half is a multiple of the first, either is kept of each two, and gives the other."""
    layer = frozen.blocks[3][0]
    layer.weight.data[4:] = 2 * layer.weight.data[:4]
    layer.bias.data[:4], layer.bias.data[4:] = 10.0, 20.0  # no channel is 0 everywhere
    inputs = Inputs(frozen, pictures(4))
    place = least_squares.Place(3, 0, 2)
    kept = least_squares.most_telling(inputs, least_squares.all_views(inputs), place, 4)
    assert (kept.channels % 4).sort().values.tolist() == [0, 1, 2, 3]
    expected = frozen.blocks[3][:2](torch.rand(3, 8, 4, 4)).movedim(1, -1).double()
    found = expected[..., kept.channels] @ kept.weight.T + kept.bias
    assert torch.allclose(found, expected, atol=1e-3 * expected.max().item())


def test_channels_that_do_not_change_predict_nothing(frozen):
    """A layer that gives the same for all images: its mean alone says what there is."""
    frozen.blocks[3][0].weight.data.zero_()
    frozen.blocks[3][0].bias.data[:] = torch.arange(8) + 0.1
    inputs = Inputs(frozen, pictures(4))
    kept = least_squares.most_telling(inputs, least_squares.all_views(inputs), least_squares.Place(3, 0, 2), 4)
    expected = torch.eye(8, dtype=torch.float64)[:, kept.channels]
    assert torch.allclose(kept.weight, expected)
    mean = frozen.blocks[3][0].bias.double()
    assert torch.allclose(kept.weight @ mean[kept.channels] + kept.bias, mean)


@torch.no_grad()
def test_a_channel_counts_by_the_weights_of_the_next_layer(frozen):
    (_, last), (first, *_) = convolutions(frozen.blocks[3]), convolutions(frozen.blocks[4])
    places = {least_squares.Place(3, 0, 2): last, least_squares.Place(3, 2, 5): first}
    for place, reader in places.items():
        expected = torch.einsum("ocij,odij->cd", reader.weight, reader.weight)
        assert torch.allclose(least_squares.readers(frozen, place).float(), expected, atol=1e-5)
    linear = frozen.network.classifier[0].weight
    behind = least_squares.Place(4, len(frozen.blocks[4]) - 3, len(frozen.blocks[4]))
    assert torch.allclose(least_squares.readers(frozen, behind).float(), linear.T @ linear, atol=1e-5)


def test_a_channel_that_the_next_layer_does_not_read_is_not_kept(frozen):
    """Whatever its variance."""
    frozen.blocks[3][0].weight.data[5] *= 100
    frozen.blocks[3][0].bias.data[5] = 1e4  # so that it is never 0
    frozen.blocks[3][2].weight.data[:, 5] = 0.0
    inputs = Inputs(frozen, pictures(4))
    place = least_squares.Place(3, 0, 2)
    kept = least_squares.most_telling(inputs, least_squares.all_views(inputs), place, 2)
    assert 5 not in kept.channels.tolist()


def test_a_teacher_whose_channels_follow_from_half_of_them_loses_nothing(teacher):
    """Each filter is there twice, the second time with twice the weights, and everything behind reads both."""
    frozen = frozen_teacher(teacher)
    for layer in convolutions(frozen.blocks[FIRST_GRAFTED:-1]):
        half = layer.out_channels // 2
        layer.weight.data[half:], layer.bias.data[half:] = 2 * layer.weight.data[:half], 2 * layer.bias.data[:half]
    shown = frozen.views.pad(torch.from_numpy(pictures(3, seed=5)))
    images = frozen.normalization(frozen.views.crop(shown, torch.arange(3), torch.full((3,), MIDDLE)))
    student, expected = nn.Sequential(*frozen.blocks[:FIRST_GRAFTED], fit(frozen, 3)), teacher(images)
    assert torch.allclose(student(images), expected, atol=1e-3 * expected.abs().max().item())


def test_absorbing_a_1x1_convolution_is_exact_also_at_the_border():
    random = torch.Generator().manual_seed(0)
    layer, behind = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    for parameter in (*layer.parameters(), *behind.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=random)
    maps = torch.randn(2, 3, 4, 4, generator=random)
    expected = behind(layer(maps))
    with torch.no_grad():
        least_squares.append_map(layer, behind.weight[:, :, 0, 0].double(), behind.bias.double())
    assert torch.allclose(layer(maps), expected, atol=1e-5)


def test_least_squares_finds_an_affine_map_from_batches():
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=random) for size in ((40, 3), (2, 3), (2,)))
    found = least_squares.affine_map(zip(x.split(7), (x @ weight.T + bias).split(7), strict=True))
    assert torch.allclose(found[0].float(), weight, atol=1e-5) and torch.allclose(found[1].float(), bias, atol=1e-5)


def test_of_several_solutions_the_smallest_is_taken():
    """Two equal inputs share the weight."""
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    weight, bias = least_squares.affine_map([(x, 6 * x[:, :1])])
    assert weight.tolist()[0] == pytest.approx([3.0, 3.0], abs=1e-4) and bias.item() == pytest.approx(0, abs=1e-4)


def test_the_student_is_the_same_from_cached_features(dataset, frozen):
    """Their networks are matrix products."""
    images = pictures(6, seed=9)
    cached = CachedTeacher(frozen.network, vgg(frozen.network.architecture), dataset, [images], 10**9)
    plain, fast = Inputs(frozen, images), cached.inputs(images)
    students, accelerated, fast_network = [], [], fast.fast_network
    fast.fast_network = lambda network, start: accelerated.append(start) or fast_network(network, start)
    for inputs in (plain, fast):
        student, _ = least_squares.fitted(inputs, least_squares.all_views(inputs))
        students.append(student(plain.features(FIRST_GRAFTED, torch.arange(6), torch.full((6,), MIDDLE))))
    assert accelerated == [3, 3, 3] * 2 + [4, 3, 4] * (len(accelerated) // 3 - 2) + [3, 5]
    assert torch.allclose(*students, rtol=0, atol=1e-3 * students[0].abs().max().item())


def test_all_views_are_each_view_of_each_image(frozen):
    batches = least_squares.all_views(Inputs(frozen, pictures(3)))
    used = [pair for batch in batches for pair in zip(*(part.tolist() for part in batch), strict=True)]
    assert used == [(image, view) for image in range(3) for view in range(COUNT)]


def test_each_layer_is_solved_against_the_teachers_outputs(frozen):
    """No affine map behind any layer, applied to the student as it then is, fits the teacher's outputs better."""
    inputs = Inputs(frozen, pictures(2))
    batches = least_squares.all_views(inputs)
    student, _ = least_squares.fitted(inputs, batches)
    first, second = 0, 2  # the inputs of the second convolution are no longer the teacher's
    for block, position, end in ((FIRST_GRAFTED, first, second), (FIRST_GRAFTED, second, 4)):
        narrow, wide = student[0], frozen.blocks[block]
        place, count = least_squares.Place(block, position, end), narrow[position].out_channels
        kept = least_squares.most_telling(inputs, batches, place, count).channels
        pairs = least_squares.outputs(inputs, batches, narrow[: position + 1], block, wide[: position + 1])
        weight, bias = least_squares.affine_map((x, y[:, kept]) for x, y in pairs)
        assert torch.allclose(weight.float(), torch.eye(len(weight)), atol=1e-3)
        assert torch.allclose(bias.float(), torch.zeros(len(bias)), atol=1e-3)


def test_weights_are_solved_and_absorbed_exactly_also_in_mixed_precision():
    """Autocast would round them to bfloat16."""
    random = torch.Generator().manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(50, 4, generator=random)
    expected, target = copy.deepcopy(layer), torch.randn(50, 4, generator=random)
    with torch.no_grad():
        least_squares.append_map(expected, *least_squares.affine_map([(x, target)]))
        with arithmetic("bfloat16", torch.device("cpu")):
            least_squares.append_map(layer, *least_squares.affine_map([(x, target)]))
    assert torch.equal(layer.weight, expected.weight) and torch.equal(layer.bias, expected.bias)
