"""Least squares: what is kept, what is solved, and that absorbing changes nothing."""

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


def solve_all(student, inputs, batches):
    least_squares.solve(student, inputs, batches)
    least_squares.solve_classifier(student, inputs, batches)


def test_the_filters_with_the_largest_norms_are_kept_in_their_order():
    layer = nn.Conv2d(1, 4, 3)
    for index, size in enumerate((2.0, 3.0, -5.0, 1.0)):
        layer.weight.data[index] = size
    assert least_squares.strongest(layer, 2).tolist() == [1, 2]


def test_pruning_what_the_teacher_does_not_use_changes_nothing(teacher):
    """With half the filters zero, and nothing of them used behind, the pruned student is the teacher."""
    frozen = frozen_teacher(teacher)
    wide = convolutions(frozen.blocks[FIRST_GRAFTED:-1])
    for layer, follower in zip(wide, [*wide[1:], teacher.classifier[0]], strict=True):
        weak = torch.arange(1, layer.out_channels, 2)
        layer.weight.data[weak], layer.bias.data[weak] = 0.0, 0.0
        follower.weight.data[:, weak] = 0.0
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    student = nn.Sequential(*frozen.blocks[:FIRST_GRAFTED], least_squares.pruned(frozen))
    assert torch.allclose(student(images), teacher(images), atol=1e-5)


def test_absorbing_a_1x1_convolution_is_exact_also_at_the_border():
    random = torch.Generator().manual_seed(0)
    layer, behind = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    for parameter in (*layer.parameters(), *behind.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=random)
    maps = torch.randn(2, 3, 4, 4, generator=random)
    expected = behind(layer(maps))
    with torch.no_grad():
        least_squares.absorb(layer, behind.weight[:, :, 0, 0].double(), behind.bias.double())
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
        student = least_squares.pruned(frozen)
        solve_all(student, inputs, least_squares.enough_views(inputs))
        students.append(student(plain.features(FIRST_GRAFTED, torch.arange(6), torch.full((6,), MIDDLE))))
    assert accelerated == [3, 3, 3, 3, 3, 4, 3, 5]
    assert torch.allclose(*students, rtol=0, atol=1e-3 * students[0].abs().max().item())


def test_all_views_of_few_images_and_some_of_each_of_many(frozen, monkeypatch):
    def used(images):
        batches = least_squares.enough_views(Inputs(frozen, pictures(images)))
        return [pair for batch in batches for pair in zip(*(part.tolist() for part in batch), strict=True)]

    assert used(3) == [(image, view) for image in range(3) for view in range(COUNT)]
    monkeypatch.setattr(least_squares, "ENOUGH", 4 * COUNT)
    assert used(4) == [(image, view) for image in range(4) for view in range(COUNT)]
    many = used(COUNT)  # two crops of each, and their mirror images
    assert len(many) == len(set(many)) == 4 * COUNT and {(image, view ^ 1) for image, view in many} == set(many)
    assert {image for image, _ in many} == set(range(COUNT))
    assert all(sum(view == one for _, view in many) == 4 for one in range(COUNT))  # each view as often
    assert len(used(3 * COUNT)) == 6 * COUNT  # one of each


def test_each_layer_is_solved_against_the_teachers_outputs(frozen):
    """No affine map behind any layer, applied to the student as it then is, fits the teacher's outputs better."""
    student, inputs = least_squares.pruned(frozen), Inputs(frozen, pictures(2))
    batches = least_squares.enough_views(inputs)
    before = least_squares.mean_distance(student, inputs, batches)
    solve_all(student, inputs, batches)
    assert least_squares.mean_distance(student, inputs, batches) < before / 2
    block, position = FIRST_GRAFTED, 2  # the second convolution: its inputs are no longer the teacher's
    narrow, wide = student[0], frozen.blocks[block]
    kept = least_squares.strongest(wide[position], narrow[position].out_channels)
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
        least_squares.absorb(expected, *least_squares.affine_map([(x, target)]))
        with arithmetic("bfloat16", torch.device("cpu")):
            least_squares.absorb(layer, *least_squares.affine_map([(x, target)]))
    assert torch.equal(layer.weight, expected.weight) and torch.equal(layer.bias, expected.bias)
