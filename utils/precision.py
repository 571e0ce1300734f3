"""With how many bits a run computes, and that it computes the same each time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

SETTING_PER_OPERATION = hasattr(torch.backends.cudnn, "conv")  # since torch 2.9, where the older settings warn


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision of --precision, whatever PyTorch is set to; its settings come back afterwards.

    tf32: as PyTorch does by default, with TensorFloat-32 in the convolutions on NVIDIA GPUs and float32 everywhere
    else. float32: without that exception. bfloat16: automatic mixed precision; weights and optimiser stay float32.
    Convolutions on NVIDIA GPUs add up in the same order each time, so that a cell can be repeated to the last bit.
    """
    before, cudnn_deterministic = float32_settings(), torch.backends.cudnn.deterministic
    tf32 = precision != "float32"
    set_float32(["tf32" if tf32 else "ieee", *["ieee"] * 3] if SETTING_PER_OPERATION else [tf32, "highest"])
    torch.backends.cudnn.deterministic = True
    try:  # no cache of cast weights: they change under it
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
    finally:
        set_float32(before)
        torch.backends.cudnn.deterministic = cudnn_deterministic


def float32_settings() -> list[Any]:
    """How PyTorch multiplies float32 numbers now."""
    if SETTING_PER_OPERATION:
        return [operation.fp32_precision for operation in _operations()]
    return [torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()]


def set_float32(settings: list[Any]) -> None:
    if SETTING_PER_OPERATION:
        for operation, setting in zip(_operations(), settings, strict=True):
            operation.fp32_precision = setting
    else:
        torch.backends.cudnn.allow_tf32, products = settings
        torch.set_float32_matmul_precision(products)


def _operations() -> list[Any]:
    """Convolutions on NVIDIA GPUs, matrix products there, matrix products and convolutions on the CPU."""
    cuda, cpu = torch.backends.cuda, torch.backends.mkldnn
    return [torch.backends.cudnn.conv, cuda.matmul, cpu.matmul, cpu.conv]


def cache_dtype(precision: str) -> torch.dtype:
    """In which features are kept."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
