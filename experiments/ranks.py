"""Sharing work between the processes that `torchrun` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from torch import distributed

from utils.errors import BadInput
from utils.torchrun import VARIABLES, started_by_torchrun

TIMEOUT = timedelta(days=30)  # ranks finish their last cells at different times
JOIN_TIMEOUT = timedelta(minutes=5)
START = "start with torchrun, or unset its variables"


class LeaderFailed(Exception):
    """The leader has stopped with a message; the other ranks stop without one."""


class RankLost(Exception):
    """Another rank has ended, so waiting for it would never end."""


@dataclass(frozen=True)
class Rank:
    """One of `count` processes, `local_count` of which are on this machine."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    group: distributed.ProcessGroup | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this rank prepares the work and prints what is printed only once."""
        return self.index == 0

    def wait(self) -> None:
        """The leader waits until every rank has called this. Raises RankLost in the leader.

        The others have nothing left to do: where the leader has ended before their last message came, they are done.
        """
        with nullcontext() if self.is_leader else suppress(RankLost):
            self._all_succeeded(True)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader runs the block before the others: it downloads, trains and writes; the others then read.

        If the leader fails in the block, its error is raised as usual, and the others raise LeaderFailed. Raises
        RankLost.
        """
        if not self.is_leader and not self._all_succeeded(True):
            raise LeaderFailed
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            if self.is_leader:
                self._all_succeeded(succeeded)

    def _all_succeeded(self, succeeded: bool) -> bool:
        """Wait for every rank. Returns whether all of them have succeeded."""
        if self.count == 1:
            return succeeded
        least = torch.tensor(int(succeeded))
        try:
            distributed.all_reduce(least, distributed.ReduceOp.MIN, group=self.group)
        except RuntimeError as error:  # the connection is closed
            raise RankLost("another process of this torchrun has ended; see its message, and run again") from error
        return bool(least)


SINGLE_PROCESS = Rank()


def join() -> Rank:
    """This process's rank, from torchrun's environment variables; Rank() without torchrun. Raises BadInput.

    On the CPU, the ranks of one machine share its cores.
    """
    if not started_by_torchrun():
        return SINGLE_PROCESS
    rank = Rank(*map(_whole_number, VARIABLES))
    if not (rank.index < rank.count and rank.local_index < rank.local_count):
        raise BadInput(f"RANK={rank.index} WORLD_SIZE={rank.count}: {START}")
    if rank.count == 1:
        return rank
    if "MASTER_ADDR" not in os.environ:
        raise BadInput(f"RANK is set, MASTER_ADDR is not: {START}")
    _whole_number("MASTER_PORT")
    try:
        distributed.init_process_group(
            "gloo", store=_store(), rank=rank.index, world_size=rank.count, timeout=JOIN_TIMEOUT
        )
        group = distributed.new_group(timeout=TIMEOUT)
    except RuntimeError as error:
        raise BadInput(f"RANK={rank.index}: the other processes cannot be reached; {START}") from error
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // rank.local_count))
    return replace(rank, group=group)


def _store() -> distributed.Store:
    """Where the ranks find each other's addresses. Raises RuntimeError if it cannot be reached.

    torchrun keeps one store for all attempts of --max_restarts (pytorch/pytorch issue 135712); so each attempt has
    keys of its own, and no rank waits for a process of the attempt before.
    """
    store, _, _ = next(distributed.rendezvous("env://", timeout=JOIN_TIMEOUT))
    return distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def leave() -> None:
    """Close the connections to the other ranks, as PyTorch asks for before a process ends."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _whole_number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise BadInput(f"{name}={text}: is not a whole number; {START}")
    return int(text)
