"""A folded student computes what the student with adapters computes; merging weights alone does not."""

import pytest
import torch
from conftest import ROOT
from small import frozen_teacher, pictures
from torch import nn

from data.datasets import open_dataset
from deployment.folding import USUALLY_FOLDED, fold
from grafting.scions import scions
from grafting.students import graft_of
from models import checkpoints
from models.architectures import ARCHITECTURES
from models.networks import frozen, initialize, parameter_count, vgg
from models.vgg import BlockwiseVGG

TOLERANCE = 1e-4  # of the largest logit


def with_biases(made: list[nn.Sequential]) -> list[nn.Sequential]:
    """Scions like trained ones: with biases (fresh ones are 0, which hides the borders) and larger linear weights."""
    random = torch.Generator().manual_seed(2)
    for scion in made:
        for layer in frozen(scion).modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.bias, 0.0, 0.3, generator=random)
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(10)
    return made


def with_adapters(teacher, student, images):
    return nn.Sequential(teacher.blocks[:3], *student)(teacher.normalization(torch.from_numpy(images)))


def distance(logits, reference):
    return ((logits - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture
def teacher():
    return frozen_teacher()


@pytest.fixture
def student(teacher):
    return with_biases(scions(teacher, torch.Generator().manual_seed(0)))


def test_the_folded_student_is_the_same_function_and_a_frozen_copy(teacher, student):
    images = pictures(50)
    reference = with_adapters(teacher, student, images)
    network = fold(teacher, student)
    logits = network(torch.from_numpy(images))
    assert distance(logits, reference) < 1e-5
    assert torch.equal(logits.argmax(1), reference.argmax(1))
    sources = {p.data_ptr() for module in (teacher.network, *student) for p in module.parameters()}
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert not sources & {p.data_ptr() for p in network.parameters()}
    assert torch.allclose(fold(teacher, student, temperature=0.25)(torch.from_numpy(images)), 4 * logits, rtol=1e-5)


@pytest.mark.parametrize("width", [0.25, 1.0])
@pytest.mark.parametrize("grafted", [(3, 4), (3, 3), (1, 5), (0, 5), (5, 5)])
def test_any_range_and_width_is_folded(teacher, grafted, width):
    teacher.networks = vgg(teacher.networks.vgg).grafted_at(*grafted).at_width(width)
    student = nn.Sequential(*with_biases(scions(teacher, torch.Generator().manual_seed(0))))
    images = pictures(50)
    reference = graft_of(teacher, student)(teacher.normalization(torch.from_numpy(images)))
    assert distance(fold(teacher, student)(torch.from_numpy(images)), reference) < 1e-5


def test_merging_without_regard_to_the_borders_is_another_function(teacher, student):
    """One bias for all pixels, as if the whole kernel lay on the image."""
    images = pictures(50)
    network = fold(teacher, student)
    (_, s2t0), (t2s0, block4, _), _ = student
    constant = t2s0(s2t0(torch.zeros(1, s2t0.in_channels, 1, 1)))[0, :, 0, 0]
    naive = block4[0].bias + block4[0].weight.sum((2, 3)) @ constant
    network.blocks[USUALLY_FOLDED[0]][0].bias_map.copy_(naive[:, None, None].expand(-1, 2, 2))
    assert distance(network(torch.from_numpy(images)), with_adapters(teacher, student, images)) > 10 * TOLERANCE


def test_the_real_architecture_and_its_parameters():
    """5,279,306 at 10 classes; the student of docs/method.md, section 1, has 5,412,682."""
    network = initialize(BlockwiseVGG(ARCHITECTURES["vgg16"], 10), torch.Generator().manual_seed(0))
    teacher = frozen_teacher(network)
    student = with_biases(scions(teacher, torch.Generator().manual_seed(1)))
    network = fold(teacher, student)
    images = pictures(4)
    assert distance(network(torch.from_numpy(images)), with_adapters(teacher, student, images)) < TOLERANCE
    assert parameter_count(network) == 5_279_306
    assert parameter_count(BlockwiseVGG(ARCHITECTURES["vgg16-graft"], 10)) - parameter_count(network) == 133_376


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_all_test_images_with_the_real_teacher(real_data, real_teachers, name):
    """With the students in ckpt/student if there are any, else with random scions."""
    dataset = open_dataset(name, real_data(name))
    path = real_teachers / f"vgg16-blockwise-{name.lower()}.pth"
    teacher = frozen_teacher(checkpoints.read_teacher(path, dataset.classes), dataset)
    files = sorted((ROOT / "ckpt/student").glob(f"vgg16-student-graft-net-{name}-*-trial0.pth"))[:1]
    student = with_biases(scions(teacher, torch.Generator().manual_seed(0)))
    for file in files:
        checkpoints.load(nn.Sequential(*student), checkpoints.read(file)[1], file)
    network = fold(teacher, student)
    for images in dataset.test().images.reshape(-1, 500, 3, 32, 32):
        reference, logits = with_adapters(teacher, student, images), network(torch.from_numpy(images))
        assert distance(logits, reference) < TOLERANCE
        assert torch.equal(logits.argmax(1), reference.argmax(1))
