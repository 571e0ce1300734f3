"""The machine at hand: devices, memory, versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from utils.errors import BadInput


def device_named(name: str | None, local_rank: int = 0) -> torch.device:
    """The device of that name; without one, a GPU if there is one (each rank its own), else the CPU.

    A GPU becomes the current one, which streams and graphs refer to.
    """
    if name is None:
        gpus = torch.cuda.device_count()
        name = f"cuda:{local_rank % gpus}" if gpus else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {name}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; for the CPU what the system says is available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def peak_gpu_memory(device: torch.device) -> int | None:
    """Most bytes that this process has held on the GPU; None on another device."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def memory_to_use(device: torch.device, processes: int = 1) -> int:
    """Three quarters of what is free on the device, in bytes, shared by those of this machine's `processes` on it."""
    sharing = -(-processes // torch.cuda.device_count()) if device.type == "cuda" else processes
    return free_memory(device) * 3 // 4 // sharing


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done in hardware; of the CPUs, those of x86 are asked."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def description(device: torch.device) -> dict[str, Any]:
    """Device and versions, for result files."""
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
