import torch
from torch import nn

from utils.precision import PRECISIONS, arithmetic, cache_dtype

CPU = torch.device("cpu")


def computed(precision):
    """(dtype of a layer's output, whether convolutions on a GPU would use TensorFloat-32, dtype of what is kept)."""
    with arithmetic(precision, CPU):
        output = nn.Linear(2, 2)(torch.ones(1, 2))
        return output.dtype, torch.backends.cudnn.allow_tf32, cache_dtype(precision)


def test_precisions():
    assert {precision: computed(precision) for precision in PRECISIONS} == {
        "tf32": (torch.float32, True, torch.float32),
        "float32": (torch.float32, False, torch.float32),
        "bfloat16": (torch.bfloat16, True, torch.bfloat16),
    }
    assert torch.backends.cudnn.allow_tf32 and not torch.is_autocast_enabled("cpu")


def test_weights_that_change_are_cast_anew():
    layer = nn.Linear(1, 1, bias=False)
    with arithmetic("bfloat16", CPU), torch.no_grad():
        outputs = [layer(torch.ones(1, 1)).item() for value in (1.0, 2.0) if layer.weight.fill_(value) is not None]
    assert outputs == [1.0, 2.0]
