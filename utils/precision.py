"""With how many bits a run computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("tf32", "float32", "bfloat16")


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in one of PRECISIONS.

    tf32: as PyTorch does by default, with TensorFloat-32 in the convolutions on NVIDIA GPUs and float32 everywhere
    else. float32: without that exception. bfloat16: automatic mixed precision; weights and optimiser stay float32.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    try:  # no cache of cast weights: they change under it
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def cache_dtype(precision: str) -> torch.dtype:
    """In which features are kept."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
