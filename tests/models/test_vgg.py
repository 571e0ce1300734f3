import pytest
import torch
from torch import nn

from models.architectures import ARCHITECTURES, student_of
from models.networks import frozen, initialize, output_shapes, parameter_count
from models.vgg import BlockwiseVGG, cut


def without_weights(name, classes=10):
    with torch.device("meta"):
        return frozen(BlockwiseVGG(ARCHITECTURES[name], classes))


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("vgg16", 10, 14_983_498),
        ("vgg16", 100, 15_029_668),
        ("vgg16-graft", 10, 5_412_682),
        ("vgg16-graft", 100, 5_458_852),
    ],
)
def test_parameter_counts_are_the_papers(name, classes, count):
    assert parameter_count(without_weights(name, classes)) == count


@pytest.mark.parametrize(("name", "convolutions"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13), ("vgg19", 16)])
def test_depths_and_students(name, convolutions):
    architecture = ARCHITECTURES[name]
    assert sum(map(len, architecture.widths)) == convolutions
    assert [block[-1] for block in architecture.widths] == [64, 128, 256, 512, 512]
    student = student_of(architecture)  # it differs behind block 2 only
    assert [block[-1] for block in student.widths] == [64, 128, 256, 256, 256] and not student.batchnorm
    assert [len(block) for block in student.widths] == [len(block) for block in architecture.widths]


def test_keys_are_the_released_ones():
    positions = {0: (0, 2), 1: (0, 2), 2: (0, 2, 4), 3: (0, 2, 4), 4: (0, 2, 4)}
    expected = [f"features.{b}.{p}.{kind}" for b in positions for p in positions[b] for kind in ("weight", "bias")]
    expected += ["classifier.0.weight", "classifier.0.bias"]
    expected += [f"classifier.1.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    expected += ["classifier.2.weight", "classifier.2.bias"]
    assert list(without_weights("vgg16").state_dict()) == expected


def test_blocks_compose_to_the_network_and_share_its_parameters(teacher):
    images, blocks = torch.randn(2, 3, 32, 32), cut(teacher)
    for start in range(7):
        assert torch.equal(blocks[start:](blocks[:start](images)), teacher(images))
    assert blocks[3:4][0][0].weight is teacher.features[3][0].weight and len(blocks) == 6


def test_shapes_at_the_cuts():
    shapes = output_shapes(cut(without_weights("vgg16")), 32)
    assert shapes == [(3, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1), (10,)]


def test_initialisation():
    layers = nn.Sequential(nn.Conv2d(256, 512, 3), nn.Linear(512, 512))
    convolution, linear = initialize(layers, torch.Generator().manual_seed(0))
    assert convolution.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # fan out
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not convolution.bias.any() and not linear.bias.any()
