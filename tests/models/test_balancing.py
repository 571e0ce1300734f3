import pytest
import torch

from models.balancing import balance, block_rms, convolutions_of


def batches():
    return torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)).split(20)


@pytest.mark.parametrize("size", [2.0**-9, 0.3, 1.0, 1000.0])
def test_logits_stay_the_same_to_the_last_bit(teacher, size):
    last, first = convolutions_of(teacher, 2)[-1], convolutions_of(teacher, 3)[0]
    last.bias.copy_(torch.linspace(-0.1, 0.2, len(last.bias)))
    last.weight.mul_(size)
    last.bias.mul_(size)
    first.weight.div_(size)
    expected = [teacher(images) for images in batches()]
    balance(teacher, batches())
    assert 2**0.5 <= block_rms(teacher, 3, batches()) <= 2**1.5
    assert all(torch.equal(teacher(images), logits) for images, logits in zip(batches(), expected, strict=True))


def test_the_factor_is_a_power_of_two_and_a_balanced_teacher_is_left_alone(teacher):
    factor = balance(teacher, batches())
    assert factor == 2.0 ** round(torch.tensor(factor).log2().item())
    assert balance(teacher, batches()) == 1.0


def test_only_the_two_convolutions_change(teacher):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    convolutions_of(teacher, 2)[-1].bias.add_(0.01)
    before["features.2.0.bias"] = teacher.state_dict()["features.2.0.bias"].clone()
    factor = balance(teacher, batches())
    assert factor != 1.0
    after = teacher.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"features.2.0.weight", "features.2.0.bias", "features.3.0.weight"}


def test_a_silent_block_is_left_alone(teacher):
    last = convolutions_of(teacher, 2)[-1]
    last.weight.zero_()
    last.bias.fill_(-1.0)
    assert balance(teacher, batches()) == 1.0


def test_rms_by_hand(teacher):
    features = torch.cat([teacher[:3](images) for images in batches()])
    assert block_rms(teacher, 3, batches()) == pytest.approx(features.square().mean().sqrt().item(), rel=1e-6)
