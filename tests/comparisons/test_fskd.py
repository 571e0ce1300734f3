"""FSKD: what is kept, what is solved, and that absorbing changes nothing."""

import copy

import pytest
import torch
from small import pictures, short_recipe
from torch import nn

from acceleration.feature_cache import CachedTeacher
from comparisons import fskd
from comparisons.methods import METHODS
from comparisons.plain_student import own_blocks
from data.views import IDENTITY, VIEWS
from grafting.distillation import NotFinite
from grafting.teacher import FrozenTeacher
from models.vgg import FIRST_GRAFTED
from utils.precision import arithmetic


@pytest.fixture
def frozen(teacher, dataset):
    return FrozenTeacher(teacher, dataset.normalization, dataset.test())


def test_the_filters_with_the_largest_norms_are_kept_in_their_order():
    layer = nn.Conv2d(1, 4, 3)
    for index, size in enumerate((2.0, 3.0, -5.0, 1.0)):
        layer.weight.data[index] = size
    assert fskd.strongest(layer, 2).tolist() == [1, 2]


def test_a_pruned_filter_computes_what_it_computes_in_the_teacher(teacher):
    """The first convolution of block 3 has the teacher's own inputs, so what is kept of it stays the same."""
    student = fskd.pruned(teacher)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, teacher.architecture.width_after(FIRST_GRAFTED - 1), 4, 4, generator=random)
    wide, narrow = teacher.features[FIRST_GRAFTED][0], student.features[FIRST_GRAFTED][0]
    kept = fskd.strongest(wide, narrow.out_channels)
    assert torch.allclose(narrow(features), wide(features)[:, kept], atol=1e-6)


def test_pruning_what_the_teacher_does_not_use_changes_nothing(teacher):
    """With half the filters zero, and nothing of them used behind, the pruned student is the teacher."""
    teacher = copy.deepcopy(teacher)
    wide = fskd.convolutions(teacher[FIRST_GRAFTED : len(teacher) - 1])
    followers = [*wide[1:], teacher.classifier[0]]
    for layer, follower in zip(wide, followers, strict=True):
        weak = torch.arange(1, layer.out_channels, 2)
        layer.weight.data[weak], layer.bias.data[weak] = 0.0, 0.0
        follower.weight.data[:, weak] = 0.0
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fskd.pruned(teacher)(images), teacher(images), atol=1e-5)


def test_absorbing_a_1x1_convolution_is_exact_also_at_the_border():
    random = torch.Generator().manual_seed(0)
    layer, behind = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    for parameter in (*layer.parameters(), *behind.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=random)
    maps = torch.randn(2, 3, 4, 4, generator=random)
    expected = behind(layer(maps))
    with torch.no_grad():
        fskd.absorb(layer, behind.weight[:, :, 0, 0].double(), behind.bias.double())
    assert torch.allclose(layer(maps), expected, atol=1e-5)


def test_least_squares_finds_an_affine_map_from_batches():
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=random) for size in ((40, 3), (2, 3), (2,)))
    found = fskd.affine_map(zip(x.split(7), (x @ weight.T + bias).split(7), strict=True))
    assert torch.allclose(found[0].float(), weight, atol=1e-5) and torch.allclose(found[1].float(), bias, atol=1e-5)


def test_of_several_solutions_the_smallest_is_taken():
    """Two equal inputs share the weight."""
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    weight, bias = fskd.affine_map([(x, 6 * x[:, :1])])
    assert weight.tolist()[0] == pytest.approx([3.0, 3.0], abs=1e-4) and bias.item() == pytest.approx(0, abs=1e-4)


def test_every_view_is_used_once(frozen):
    batches = fskd.batches_of(frozen.few_shot(pictures(3)), range(VIEWS))
    seen = torch.cat([image * VIEWS + view for image, view in batches])
    assert len(batches) > 1 and sorted(seen.tolist()) == list(range(3 * VIEWS))


@pytest.mark.parametrize("name, views", [("fskd", list(range(VIEWS))), ("fskd-images", [IDENTITY])])
def test_the_views_that_a_method_uses(name, views, teacher, frozen):
    """All, or the image alone."""
    method, seen, few = METHODS[name], set(), frozen.few_shot(pictures(2))
    features = few.features
    few.features = lambda start, image, view: (
        seen.update(zip(image.tolist(), view.tolist(), strict=True)) or features(start, image, view)
    )

    def distill(phase, scion, make):
        make(phase, scion, 1).run(frozen, few, 1, None, (), lambda current: None)

    method.train(short_recipe(), method.networks(teacher, torch.Generator()), distill, lambda: None)
    assert sorted(seen) == [(image, view) for image in (0, 1) for view in views]


def test_the_student_is_the_same_from_cached_features(teacher, dataset, frozen):
    """Their networks are matrix products."""
    images = pictures(6, seed=9)
    cached = CachedTeacher(teacher, dataset.normalization, dataset.test(), [images], 10**9)
    features = frozen.few_shot(images).features(FIRST_GRAFTED, torch.arange(6), torch.full((6,), IDENTITY))
    plain, fast = frozen.few_shot(images), cached.few_shot(images)
    students, accelerated, fast_network = [], [], fast.fast_network
    fast.fast_network = lambda network, start: accelerated.append(start) or fast_network(network, start)
    for source, views in ((frozen, plain), (cached, fast)):
        student = nn.Sequential(*own_blocks(fskd.pruned(teacher)))
        fskd.recover(student, source, views, fskd.batches_of(views, range(VIEWS)))
        students.append(student(features))
    assert accelerated == [3, 3, 3, 3, 3, 4, 3, 5]
    assert torch.allclose(*students, rtol=0, atol=1e-3 * students[0].abs().max().item())


def test_each_layer_is_solved_against_the_teachers_outputs(teacher, frozen):
    """No affine map behind any layer, applied to the student as it then is, fits the teacher's outputs better."""
    student = nn.Sequential(*own_blocks(fskd.pruned(teacher)))
    views = frozen.few_shot(pictures(2))
    batches = fskd.batches_of(views, range(VIEWS))
    before = fskd.mean_distance(student, views, batches)
    fskd.recover(student, frozen, views, batches)
    assert fskd.mean_distance(student, views, batches) < before / 2
    block, position = FIRST_GRAFTED, 2  # the second convolution: its inputs are no longer the teacher's
    narrow, wide = student[0][0], teacher.features[block]
    kept = fskd.strongest(wide[position], narrow[position].out_channels)
    pairs = fskd.outputs(views, batches, narrow[: position + 1], block, wide[: position + 1])
    weight, bias = fskd.affine_map((x, y[:, kept]) for x, y in pairs)
    assert torch.allclose(weight.float(), torch.eye(len(weight)), atol=1e-3) and torch.allclose(
        bias.float(), torch.zeros(len(bias)), atol=1e-3
    )


def test_weights_are_solved_and_absorbed_exactly_also_in_mixed_precision():
    """Autocast would round them to bfloat16."""
    random = torch.Generator().manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(50, 4, generator=random)
    expected, target = copy.deepcopy(layer), torch.randn(50, 4, generator=random)
    with torch.no_grad():
        fskd.absorb(expected, *fskd.affine_map([(x, target)]))
        with arithmetic("bfloat16", torch.device("cpu")):
            fskd.absorb(layer, *fskd.affine_map([(x, target)]))
    assert torch.equal(layer.weight, expected.weight) and torch.equal(layer.bias, expected.bias)


def test_outputs_that_overflow_are_no_result(teacher, dataset):
    """PyTorch's least squares would end the sweep."""
    for layer in list(fskd.convolutions(teacher))[-2:]:
        layer.weight.mul_(1e25)
    broken = fskd.LeastSquares(
        fskd.FSKD().phases(short_recipe())[0], nn.Sequential(*own_blocks(fskd.pruned(teacher))), 1, (IDENTITY,)
    )
    overflowing = FrozenTeacher(teacher, dataset.normalization, dataset.test())
    with pytest.raises(NotFinite):
        broken.run(overflowing, overflowing.few_shot(pictures(1)), 1, None, (), lambda current: None)


def test_a_loss_that_is_not_finite_is_no_result(teacher, frozen):
    broken = fskd.LeastSquares(
        fskd.FSKD().phases(short_recipe())[0], nn.Sequential(*own_blocks(fskd.pruned(teacher))), 1, (IDENTITY,)
    )
    views = frozen.few_shot(pictures(1))
    views.logits = lambda image, view: torch.full((len(image), teacher.classes), torch.nan)
    with pytest.raises(NotFinite):
        broken.run(frozen, views, 1, None, (), lambda current: None)
