import os
import platform
import resource

import pytest
import torch

from utils import machine
from utils.errors import BadInput
from utils.machine import cpu_flags, cpu_name, device_named, free_host_memory, has_fast_bfloat16, memory_to_use

CPU = torch.device("cpu")
GB = 10**9
NO_LIMIT = 9223372036854771712  # of version 1
V1, V2 = "5:cpu,cpuacct:/elsewhere\n4:memory:/job/step\n1:name=systemd:/\n", "0::/job/step\n"


@pytest.fixture
def system(tmp_path):
    """A function that writes files of /proc and /sys/fs/cgroup and returns what free_host_memory makes of them."""

    def free(available=64 * GB, group="", pages=0, groups=()):
        files = {
            "proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\n",
            "proc/self/cgroup": group,
            "proc/self/statm": f"{pages} 1 1 1 0 1 0\n",
        }
        for of_group in groups:
            files |= of_group
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return free_host_memory(tmp_path / "proc", tmp_path / "cgroup")

    return free


def version_2(folder, limit, current, inactive=0):
    return {
        f"cgroup/{folder}memory.max": f"{limit}\n",
        f"cgroup/{folder}memory.current": f"{current}\n",
        f"cgroup/{folder}memory.stat": f"anon 5\nfile 7\ninactive_file {inactive}\n",
    }


def version_1(folder, limit, usage, inactive=0, hierarchical=NO_LIMIT):
    return {
        f"cgroup/memory/{folder}memory.limit_in_bytes": f"{limit}\n",
        f"cgroup/memory/{folder}memory.usage_in_bytes": f"{usage}\n",
        f"cgroup/memory/{folder}memory.stat":
            f"cache 5\nhierarchical_memory_limit {hierarchical}\ninactive_file 3\ntotal_inactive_file {inactive}\n",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("group", "groups", "least"),
    [
        (V2, [version_2("job/step/", "max", 5)], 64 * GB // 1024 * 1024),
        (V2, [version_2("job/step/", 8 * GB, 5)], 8 * GB - 5),
        (V2, [version_2("job/step/", 3000, 1000), version_2("job/", "max", 2000)], 2000),
        (V2, [version_2("job/step/", "max", 1000), version_2("job/", 3000, 2000)], 1000),
        (V2, [version_2("job/step/", 5000, 1000), version_2("", 4000, 3000)], 1000),
        (V2, [version_2("job/step/", 3000, 1000, 400), version_2("job/", 3000, 2500, 2000)], 2400),
        (V2, [version_2("job/step/", 1000, 1500)], 0),
        (V1, [version_1("job/step/", 3000, 1000), version_1("job/", NO_LIMIT, 2000)], 2000),
        (V1, [version_1("job/step/", NO_LIMIT, 1000), version_1("job/", 3000, 2000)], 1000),
        (V1, [version_1("job/step/", 3000, 1000, 400), version_1("job/", NO_LIMIT, 2000)], 2400),
        (V1, [version_1("job/step/", NO_LIMIT, 1000, 0, 1500), version_1("job/", NO_LIMIT, 1000)], 500),
        # a container that sees its own group as the root is told the group's name on the host
        ("4:memory:/docker/0123\n", [version_1("", 1000, 100)], 900),
        ("0::/docker/0123\n", [version_2("", 500, 100)], 400),
        ("0::/../0123\n", [version_2("", 500, 200)], 300),
    ],
)
def test_the_least_of_what_the_system_and_the_control_groups_leave(system, group, groups, least):
    assert system(group=group, groups=groups) == least
    assert system(available=0, group=group, groups=groups) == 0


def test_limit_on_the_address_space(system, monkeypatch):
    size = os.sysconf("SC_PAGE_SIZE")
    for limit, left in ((100 * size, 97 * size), (resource.RLIM_INFINITY, 64 * GB)):
        monkeypatch.setattr(resource, "getrlimit", lambda of, limit=limit: (limit, resource.RLIM_INFINITY))
        assert system(pages=3) == left


def test_a_system_that_says_nothing(tmp_path):
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    assert free_host_memory(tmp_path, tmp_path) == half


def test_three_quarters_shared_by_the_machines_processes(monkeypatch):
    monkeypatch.setattr(machine, "free_host_memory", lambda: 800)
    assert (memory_to_use(CPU), memory_to_use(CPU, 3), memory_to_use(CPU, 3, "cpu")) == (600, 200, 200)


def test_the_cores_are_shared_by_the_machines_processes(monkeypatch):
    threads = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for processes in (1, 3, 9):
        machine.share_cores(processes)
    assert threads == [2, 1]  # a process alone keeps what torch has chosen


@pytest.fixture
def gpus(monkeypatch):
    """A machine that seems to have two GPUs with 800 bytes free on each. What becomes current is returned."""
    current, ones = [], torch.ones
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 1000))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "ones", lambda *size, dtype, device: ones(*size))
    return current


@pytest.mark.parametrize(
    ("name", "local_rank", "index", "share"),
    [
        (None, 0, 0, 300), (None, 1, 1, 300), (None, 2, 0, 300), ("cuda", 1, 1, 300), ("cuda", 2, 0, 300),
        ("cuda:0", 1, 0, 200), ("cuda:1", 2, 1, 200),
    ],
)  # fmt: skip
def test_ranks_are_spread_over_gpus_unless_one_is_named(gpus, name, local_rank, index, share):
    """Three processes on two GPUs: two share one of them, or all three the one that is named."""
    device = device_named(name, local_rank)
    assert device == torch.device("cuda", index) and gpus == [device]
    assert memory_to_use(device, 3, name) == share


def test_the_cpu_is_taken_where_there_is_no_gpu_and_where_it_is_named(monkeypatch, gpus):
    assert device_named("cpu") == CPU and gpus == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_named(None) == CPU


@pytest.mark.parametrize("name", ["meta", "abacus", "", "cuda:-1", "xla", "hpu", "mtia", "vulkan"])
def test_a_device_that_does_not_compute_is_one_line(name):
    with pytest.raises(BadInput, match=f"^--device {name}: .") as refusal:
        device_named(name)
    assert "\n" not in str(refusal.value)


def test_a_device_without_float64_is_one_line(monkeypatch):
    """As Apple's mps."""

    def single_precision_only(*_, dtype, device):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr(torch, "ones", single_precision_only)
    with pytest.raises(BadInput, match=r"^--device cpu: Cannot convert"):
        device_named("cpu")


CPUINFO = "processor\t: 0\nvendor_id\t: GenuineIntel\nvmx flags\t: vnmi\nflags\t\t: fpu vme avx512f {} amx_tile\n\n"


@pytest.mark.parametrize(("flag", "is_fast"), [("avx512_bf16", True), ("avx512_bf16x", False)])
def test_name_and_flags_of_the_processor(tmp_path, monkeypatch, flag, is_fast):
    (tmp_path / "cpuinfo").write_text("model name\t: A CPU\n" + CPUINFO.format(flag) + "model name\t: B\n")
    assert cpu_flags(tmp_path) == {"fpu", "vme", "avx512f", flag, "amx_tile"}
    assert cpu_name(tmp_path) == ("A CPU avx512_bf16 avx512f" if is_fast else "A CPU avx512f")
    assert cpu_flags(tmp_path / "elsewhere") == frozenset()
    assert cpu_name(tmp_path / "elsewhere") == (platform.processor() or platform.machine())
    monkeypatch.setattr(machine, "cpu_flags", lambda: cpu_flags(tmp_path))
    assert has_fast_bfloat16(CPU) == is_fast and not has_fast_bfloat16(torch.device("meta"))
