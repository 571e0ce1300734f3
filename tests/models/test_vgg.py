import pytest
import torch

from models.vgg import ARCHITECTURES, BlockwiseVGG, initialize, parameter_count, student_of


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
    assert parameter_count(BlockwiseVGG(ARCHITECTURES[name], classes)) == count


@pytest.mark.parametrize(("name", "convolutions"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13), ("vgg19", 16)])
def test_depths(name, convolutions):
    architecture = ARCHITECTURES[name]
    assert sum(map(len, architecture.widths)) == convolutions
    assert [block[-1] for block in architecture.widths] == [64, 128, 256, 512, 512]
    assert BlockwiseVGG(architecture, 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_student_differs_behind_block_2_only():
    assert student_of(ARCHITECTURES["vgg16"]).widths == (
        (64, 64), (128, 128), (256, 256, 256), (256, 256, 256), (256, 256, 256),
    )  # fmt: skip


def test_keys_are_the_released_ones():
    positions = {0: (0, 2), 1: (0, 2), 2: (0, 2, 4), 3: (0, 2, 4), 4: (0, 2, 4)}
    expected = [f"features.{b}.{p}.{kind}" for b in positions for p in positions[b] for kind in ("weight", "bias")]
    expected += ["classifier.0.weight", "classifier.0.bias"]
    expected += [f"classifier.1.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    expected += ["classifier.2.weight", "classifier.2.bias"]
    assert list(BlockwiseVGG(ARCHITECTURES["vgg16"], 10).state_dict()) == expected


def test_slices_compose_to_the_network_and_share_its_parameters(teacher):
    images = torch.randn(2, 3, 32, 32)
    for start in range(len(teacher) + 1):
        assert torch.equal(teacher[start:](teacher[:start](images)), teacher(images))
    assert teacher[3:4][0][0].weight is teacher.features[3][0].weight
    assert len(teacher[6:]) == 0


def test_shapes_at_the_cuts():
    network = BlockwiseVGG(ARCHITECTURES["vgg16"], 10).eval()
    features = network[:3](torch.zeros(1, 3, 32, 32))
    assert features.shape == (1, 256, 4, 4)
    assert network[3:4](features).shape == (1, 512, 2, 2)
    assert network[3:5](features).shape == (1, 512, 1, 1)


def test_initialisation():
    network = initialize(BlockwiseVGG(ARCHITECTURES["vgg16"], 10), torch.Generator().manual_seed(0))
    convolution, linear = network.features[3][2], network.classifier[0]
    assert convolution.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # fan out
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not convolution.bias.any() and not linear.bias.any()


def test_a_frozen_network_keeps_no_gradients(teacher):
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
