import warnings

import pytest
import torch
from torch import nn

from experiments.arguments import PRECISIONS
from utils.precision import arithmetic, cache_dtype, float32_settings, set_float32

SETTING_PER_OPERATION = hasattr(torch.backends.cudnn, "conv")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored():
    before = float32_settings()
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    set_float32(before)


def computed(precision):
    """(dtype of a layer's output, whether convolutions on a GPU would use TensorFloat-32, dtype of what is kept)."""
    with arithmetic(precision, CPU):
        output = nn.Linear(2, 2)(torch.ones(1, 2))
        settings = float32_settings()
        return output.dtype, settings in (["tf32", "ieee", "ieee", "ieee"], [True, "highest"]), cache_dtype(precision)


def test_precisions():
    assert {precision: computed(precision) for precision in PRECISIONS} == {
        "tf32": (torch.float32, True, torch.float32),
        "float32": (torch.float32, False, torch.float32),
        "bfloat16": (torch.bfloat16, True, torch.bfloat16),
    }
    assert torch.backends.cudnn.allow_tf32 and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("before", [False, True])
def test_convolutions_on_a_gpu_give_the_same_numbers_each_time(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", before)
    with arithmetic("tf32", CPU):
        assert torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.deterministic == before


def in_conv_and_products():
    """(convolutions on a GPU, matrix products there, those on the CPU, convolutions there): less than float32?"""
    cudnn, cuda, cpu = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
    if SETTING_PER_OPERATION:
        return [o.fp32_precision in ("tf32", "bf16") for o in (cudnn.conv, cuda.matmul, cpu.matmul, cpu.conv)]
    products = torch.backends.cuda.matmul.allow_tf32
    return [torch.backends.cudnn.allow_tf32, products, torch.get_float32_matmul_precision() == "medium", False]


def per_operation():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


SETTINGS = {  # ways in which a user's own code may ask for fewer bits, or more
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "products_in_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "convolutions_in_full": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    **({"per_operation": per_operation} if SETTING_PER_OPERATION else {}),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_made_before_do_not_matter_and_come_back(setting, precision):
    SETTINGS[setting]()
    before = float32_settings(), in_conv_and_products()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with arithmetic(precision, CPU):
            assert in_conv_and_products() == [precision != "float32", False, False, False]
    assert (float32_settings(), in_conv_and_products()) == before
    if setting in ("high", "medium"):
        assert torch.get_float32_matmul_precision() == setting and torch.backends.cuda.matmul.allow_tf32
    if setting == "convolutions_in_full":
        assert not torch.backends.cudnn.allow_tf32


def test_they_come_back_after_an_error():
    torch.set_float32_matmul_precision("high")
    before = float32_settings()
    with pytest.raises(KeyError), arithmetic("float32", CPU):
        assert float32_settings() != before
        raise KeyError
    assert float32_settings() == before


def test_weights_that_change_are_cast_anew():
    layer = nn.Linear(1, 1, bias=False)
    with arithmetic("bfloat16", CPU), torch.no_grad():
        outputs = [layer(torch.ones(1, 1)).item() for value in (1.0, 2.0) if layer.weight.fill_(value) is not None]
    assert outputs == [1.0, 2.0]
