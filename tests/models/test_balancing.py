import pytest
import torch
from small import frozen_teacher

from models import balancing
from models.balancing import balance, output_rms
from models.vgg import convolutions

CPU = torch.device("cpu")


@pytest.fixture
def images(dataset):
    """The normalised training images: (12, 3, 32, 32)."""
    return dataset.normalization(torch.from_numpy(dataset.train().images))


@pytest.mark.parametrize("size", [2.0**-9, 0.1, 1.0, 1000.0])
def test_logits_stay_the_same_to_the_last_bit_and_only_two_convolutions_change(teacher, dataset, images, size):
    last, first = convolutions(teacher.features[2])[-1], convolutions(teacher.features[3])[0]
    last.bias.copy_(torch.linspace(-0.1, 0.2, len(last.bias)))
    last.weight.mul_(size)
    last.bias.mul_(size)
    first.weight.div_(size)
    expected, before = teacher(images), {name: value.clone() for name, value in teacher.state_dict().items()}
    factor = balance(teacher, dataset, CPU)
    assert factor == 2.0 ** round(torch.tensor(factor).log2().item()) and factor != 1.0
    assert 2**0.5 <= output_rms(teacher, [images]) <= 2**1.5
    assert torch.equal(teacher(images), expected)
    changed = {name for name, value in teacher.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"features.2.0.weight", "features.2.0.bias", "features.3.0.weight"}
    assert balance(teacher, dataset, CPU) == 1.0  # a balanced one is left alone


def test_a_silent_block_is_left_alone(teacher, dataset):
    last = convolutions(teacher.features[2])[-1]
    last.weight.zero_()
    last.bias.fill_(-1.0)
    assert balance(teacher, dataset, CPU) == 1.0


def test_rms_by_hand(teacher, images):
    features = frozen_teacher(teacher).blocks[:3](images)
    assert output_rms(teacher, images.split(5)) == pytest.approx(features.square().mean().sqrt().item(), rel=1e-6)


def test_all_parts_of_the_training_set_are_looked_at(teacher, dataset, images, monkeypatch):
    """Pictures in folders come class by class."""
    seen = []
    monkeypatch.setattr(balancing, "IMAGES", 7)
    monkeypatch.setattr(balancing, "output_rms", lambda network, batches: seen.extend(batches) or 1.0)
    balance(teacher, dataset, CPU)
    assert torch.equal(torch.cat(seen), images[::2])
