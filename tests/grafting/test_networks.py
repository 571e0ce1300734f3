"""The method on a network that is no VGG: BatchNorm in four blocks, images of 48 pixels, blocks 1 and 2 replaced."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from acceleration.feature_cache import CachedTeacher
from data.datasets import ImageDataset, LabelledImages
from data.views import Normalization
from grafting.distillation import Distillation
from grafting.inputs import Inputs
from grafting.recipes import CIFAR10
from grafting.scions import Adapter, adapters_of, graft, scions
from grafting.teacher import FrozenTeacher
from models.networks import Networks, batchnorms_in, initialize

CLASSES, SIZE, STORED = 3, 48, 55
SCHEDULE = replace(CIFAR10, blocks=range(1, 3), stage1_epochs=(2,), stage2_epochs=(2,))


def block(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class SmallNetwork(nn.Module):
    """Its blocks give maps of 12, 4 and 2 pixels on each side."""

    def __init__(self, widths: tuple[int, int, int], classes: int):
        super().__init__()
        strides = zip((3, *widths), widths, (4, 3, 2), strict=False)
        self.stem, self.layer1, self.layer2 = (block(*of_block) for of_block in strides)
        self.head = nn.Linear(widths[-1], classes)


def cut(network: SmallNetwork) -> nn.Sequential:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.head)
    return nn.Sequential(network.stem, network.layer1, network.layer2, head)


NETWORKS = Networks("small", partial(SmallNetwork, (6, 8, 10)), partial(SmallNetwork, (6, 4, 5)), cut, 1, 2)


def images(count: int, side: int) -> LabelledImages:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, side, side), np.uint8)
    return LabelledImages(pixels, np.arange(count) % CLASSES)


FEW = images(8, STORED).images


@pytest.fixture
def frozen():
    """A function that makes the frozen teacher, whose BatchNorm has statistics, or a CachedTeacher of FEW."""

    def make(kind=FrozenTeacher, *cache):
        random = torch.Generator().manual_seed(0)
        network = initialize(NETWORKS.teacher(CLASSES), random)
        cut(network.train())(torch.randn(64, 3, SIZE, SIZE, generator=random))
        normalization = Normalization((0.5, 0.4, 0.6), (0.2, 0.25, 0.3))
        parts = "Tiny", CLASSES, normalization, 6, False, partial(images, 9, STORED), partial(images, 20, SIZE)
        return kind(network, NETWORKS, ImageDataset(*parts, lambda: ("a", "b", "c"), image_size=SIZE), *cache)

    return make


def scion_of(teacher, phase):
    i, j = (block - NETWORKS.first for block in phase.span)
    return nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0))[i:j])


def test_scions_have_adapters_on_the_sides_where_widths_differ(frozen):
    teacher = frozen()
    b0, b1 = scions(teacher, torch.Generator().manual_seed(0))
    assert [(a.in_channels, a.out_channels) for a in adapters_of(b0)] == [(4, 8)]
    assert [(a.in_channels, a.out_channels) for a in adapters_of(b1)] == [(8, 4), (5, 10)]
    assert [type(layer) for layer in (*b0, *b1)] == [nn.Sequential, Adapter, Adapter, nn.Sequential, Adapter]
    stem, layer1, layer2, head = teacher.blocks
    x = torch.randn(5, 3, SIZE, SIZE)
    expected = {(1, 2): head(layer2(b0(stem(x)))), (2, 3): head(b1(layer1(stem(x)))), (1, 3): head(b1(b0(stem(x))))}
    for (i, j), logits in expected.items():
        scion = nn.Sequential(*[b0, b1][i - 1 : j - 1])
        assert torch.equal(graft(teacher.blocks, scion, (i, j), x), logits)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (range(1, 3), {"B0": (1, 2), "B1": (2, 3), "L2": (1, 3)}),
        (
            range(1, 5),
            {"B0": (1, 2), "B1": (2, 3), "B2": (3, 4), "B3": (4, 5), "L2": (1, 3), "L3": (1, 4), "L4": (1, 5)},
        ),
        (range(2, 3), {"B0": (2, 3)}),
    ],
)
def test_phases_for_any_number_of_blocks(blocks, expected):
    recipe = replace(CIFAR10, blocks=blocks)
    assert {phase.name: phase.span for phase in recipe.phases} == expected
    assert recipe.phases == recipe.stage1 + recipe.stage2 and len(recipe.stage1) == len(blocks)
    epochs = [100, 60, 60, 60][: len(blocks)] + [100] * (len(blocks) - 1)
    assert [phase.epochs for phase in recipe.phases] == epochs
    assert [phase.selects_among for phase in recipe.phases] == [0] * (len(epochs) - 1) + epochs[-1:]


@pytest.mark.parametrize("phase", SCHEDULE.phases, ids=[phase.name for phase in SCHEDULE.phases])
def test_only_the_scion_changes_and_it_is_measured_in_evaluation_mode(frozen, phase):
    teacher = frozen()
    inputs, run = Inputs(teacher, FEW), Distillation(phase, scion_of(teacher, phase), shots=1)
    before, fresh = ({k: v.clone() for k, v in m.state_dict().items()} for m in (teacher.network, run.scion))
    modes, teachers_modes = set(), set()

    def note_mode(module, _):
        modes.add((torch.is_grad_enabled(), *{part.training for part in module.modules()}))

    run.scion.register_forward_pre_hook(note_mode)
    for part in teacher.network.modules():
        part.register_forward_pre_hook(lambda module, _: teachers_modes.add(module.training))
    run.run(inputs, (0, 1, 0), 1, lambda d: None)
    assert modes == {(True, True), (False, False)} and teachers_modes == {False}
    assert list(run.curve.accuracies) == [1, 2] and run.curve.steps == 2 * 2  # batches of 6 and 2
    assert all(torch.equal(value, before[key]) for key, value in teacher.network.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    after = run.scion.state_dict()
    assert not any(torch.equal(after[key], fresh[key]) for key in fresh)
    batches = {value.item() for key, value in after.items() if "num_batches" in key}
    assert batches == {4}  # of training images only


@pytest.mark.parametrize("phase", SCHEDULE.phases, ids=[phase.name for phase in SCHEDULE.phases])
def test_the_cache_gives_the_same_losses_and_predictions_without_matrix_products(frozen, phase):
    plain, cached = frozen(), frozen(CachedTeacher, [FEW], 10**9)
    runs = []
    for teacher, inputs in ((plain, Inputs(plain, FEW)), (cached, cached.inputs(FEW))):
        runs.append(Distillation(phase, scion_of(teacher, phase), shots=1))
        runs[-1].run(inputs, (0, 1, 0), 1, lambda d: None)
    assert sorted(inputs.cached) == [1, 2, 4]
    network = runs[1].scion_and_tail(cached)
    assert inputs.fast_network(network, phase.span[0]) is network
    assert runs[1].curve.losses == pytest.approx(runs[0].curve.losses, rel=1e-4)
    assert runs[1].curve.accuracies == runs[0].curve.accuracies and set(cached.settled) == {"network"}


@pytest.mark.parametrize("trains", [True, False])
def test_a_last_single_image_joins_the_batch_before(frozen, trains):
    """BatchNorm cannot train on one; 9 images in batches of 8 are one step. The teacher's does not train."""
    teacher, (phase, *_) = frozen(), SCHEDULE.phases
    teacher.networks = replace(teacher.networks, start="fresh" if trains else "teacher", copy_block=lambda *_: None)
    current = Distillation(replace(phase, epochs=1), scion_of(teacher, phase), shots=2)
    current.batch, seen = 8, []
    norm, *_ = batchnorms_in(current.scion)
    hook = norm.register_forward_hook(lambda layer, inputs, _: seen.append((len(inputs[0]), layer.training)))
    current.run(Inputs(teacher, images(9, STORED).images), (0,), None, lambda _: None)
    hook.remove()
    assert seen[0] == (9, trains) and current.curve.steps == 1 and not any(training for _, training in seen[1:])
