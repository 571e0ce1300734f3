import pytest
import torch
from small import frozen_teacher
from torch import nn

from grafting.recipes import CIFAR10
from grafting.scions import graft, parameters_by_role, scions
from models.architectures import ARCHITECTURES
from models.networks import parameter_count
from models.vgg import BlockwiseVGG

SPANS = [phase.span for phase in CIFAR10.phases]


@pytest.fixture
def frozen():
    return frozen_teacher()


@pytest.fixture
def blocks(frozen):
    return scions(frozen, torch.Generator().manual_seed(0))


def test_parameter_count_is_the_papers():
    vgg16 = frozen_teacher(BlockwiseVGG(ARCHITECTURES["vgg16"], 10))
    assert sum(map(parameter_count, scions(vgg16, torch.Generator()))) == 4_203_018


def test_grafts_are_the_hand_written_compositions(frozen, blocks):
    x, teacher = torch.randn(5, 3, 32, 32), frozen.network
    t = [*teacher.features, lambda y: teacher.classifier(y.flatten(1))]
    b0, b1, b2 = blocks
    left = t[2](t[1](t[0](x)))
    expected = {
        (3, 4): t[5](t[4](b0(left))),
        (4, 5): t[5](b1(t[3](left))),
        (5, 6): b2(t[4](t[3](left))),
        (3, 5): t[5](b1(b0(left))),
        (3, 6): b2(b1(b0(left))),
    }
    assert list(expected) == SPANS
    for (i, j), logits in expected.items():
        assert torch.equal(graft(frozen.blocks, nn.Sequential(*blocks[i - 3 : j - 3]), (i, j), x), logits)


@pytest.mark.parametrize("span", [*SPANS, (0, 6), (2, 2)])
def test_the_teachers_own_blocks_as_scion_change_nothing(frozen, span):
    x = torch.randn(5, 3, 32, 32)
    assert torch.equal(graft(frozen.blocks, frozen.blocks[slice(*span)], span, x), frozen.network(x))


def test_roles(blocks):
    student, adapters = parameters_by_role(nn.Sequential(*blocks))
    assert {tuple(p.shape[2:]) for p in adapters if p.ndim == 4} == {(1, 1)}
    assert len(adapters) == 8 and len(student) == 2 * (2 + 1 + 2)
    assert {id(p) for p in student + adapters} == {id(p) for p in nn.Sequential(*blocks).parameters()}


def test_the_same_generator_gives_the_same_scions(frozen):
    one, same, other = (scions(frozen, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one[1][1][0].weight, same[1][1][0].weight)
    assert not torch.equal(one[1][1][0].weight, other[1][1][0].weight)
