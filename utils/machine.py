"""The machine at hand: devices, memory, versions."""

import math
import os
import platform
import resource
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from utils.errors import BadInput

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")  # where Linux says what a process has and may have
PAGE = os.sysconf("SC_PAGE_SIZE")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # of control groups
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
SPREAD = (None, "cuda")  # device names under which each rank takes a GPU of its own, if there is one


def device_named(name: str | None, local_rank: int = 0) -> torch.device:
    """The device of that name; without one, a GPU if there is one, else the CPU.

    Where the name gives no number, the ranks of a machine are spread over its GPUs. A GPU becomes the current one,
    which streams and graphs refer to. Raises BadInput for a device that is not there or does not compute in float64,
    which folding, balancing and FSKD need.
    """
    if name in SPREAD and (gpus := torch.cuda.device_count()):
        name = f"cuda:{local_rank % gpus}"
    name = "cpu" if name is None else name
    try:
        device = torch.device(name)
        torch.ones(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise BadInput(f"--device {name}: {reason}; --device cpu is always there") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def free_host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes that this process may still take: the least that the system, its control groups and its own limit leave.

    proc, cgroups: where these file systems are mounted. Where they are not, half of what the machine has.
    """
    bounds = [*_free_in_system(proc), *_free_in_groups(proc, cgroups), *_free_addresses(proc)]
    return max(0, min(bounds, default=PAGE * os.sysconf("SC_PHYS_PAGES") // 2))


def _free_in_system(proc: Path) -> Iterator[int]:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _free_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group from the process's own up to the root leaves, where it has a limit.

    A container may see its own group as the root and no folder under the group's name on the host. Pages of files that
    have not been used lately count as free.
    """
    for line in _lines(proc / "self/cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, limit, usage, unused = (cgroups / "memory", *VERSION_1) if controllers else (cgroups, *VERSION_2)
        for part in ("", *Path(name).parts[1:]):
            folder = folder / part
            statistics = dict(line.split() for line in _lines(folder / "memory.stat"))
            used = sum(map(int, _lines(folder / usage))) - int(statistics.get(unused, 0))
            limits = [*_lines(folder / limit), statistics.get("hierarchical_memory_limit", "max")]
            yield from (int(most) - used for most in limits if most != "max")


def _free_addresses(proc: Path) -> Iterator[int]:
    """Bytes up to the limit on the process's address space (`ulimit -v`), if there is one."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        yield from (most - int(line.split()[0]) * PAGE for line in _lines(proc / "self/statm"))


def _lines(path: Path) -> list[str]:
    """The lines of a file of the system; none where it is missing or may not be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def peak_gpu_memory(device: torch.device) -> int | None:
    """Most bytes that this process has held on the GPU; None on another device."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def memory_to_use(device: torch.device, processes: int = 1, name: str | None = None) -> int:
    """Three quarters of what is free on the device, in bytes, divided by this machine's `processes` that use it.

    name: by which device_named() found the device.
    """
    if device.type != "cuda":
        return free_host_memory() * 3 // 4 // processes
    sharing = math.ceil(processes / torch.cuda.device_count()) if name in SPREAD else processes
    return torch.cuda.mem_get_info(device)[0] * 3 // 4 // sharing


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(processes: int) -> None:
    """Let torch use this process's share of the cores, where several run on this machine."""
    if processes > 1:
        torch.set_num_threads(max(1, cores() // processes))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done in hardware; of the CPUs, those of x86 under Linux are asked."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and "avx512_bf16" in cpu_flags()


@cache
def cpu_flags(proc: Path = PROC) -> frozenset[str]:
    """What an x86 processor can do, by Linux's names; empty elsewhere."""
    return frozenset(_of_processor("flags", proc).split())


def cpu_name(proc: Path = PROC) -> str:
    """The processor's model with its vector instructions of 512 bits, which tell similar ones apart."""
    model = _of_processor("model name", proc) or platform.processor() or platform.machine()
    return " ".join([model, *sorted(cpu_flags(proc) & {"avx512f", "avx512_bf16", "amx_bf16"})])


def _of_processor(what: str, proc: Path) -> str:
    """An entry of the first processor in Linux's list; empty where there is none."""
    lines = (line.partition(":") for line in _lines(proc / "cpuinfo"))
    return next((value.strip() for name, _, value in lines if name.strip() == what), "")


def description(device: torch.device) -> dict[str, Any]:
    """Device and versions, for result files."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
