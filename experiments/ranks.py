"""Sharing work between the processes that `torchrun` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from utils.errors import BadInput

TIMEOUT = timedelta(days=30)  # ranks finish their last cells at different times
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


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

    @property
    def is_leader(self) -> bool:
        """Whether this rank prepares the work and prints what is printed only once."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until every rank has called this. Raises RankLost."""
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
            distributed.all_reduce(least, distributed.ReduceOp.MIN)
        except RuntimeError as error:  # the connection is closed
            raise RankLost("another process of this torchrun has ended; see its message, and run again") from error
        return bool(least)


SINGLE_PROCESS = Rank()


def prints_for_all() -> bool:
    """Whether this process prints the messages that concern all ranks."""
    return os.environ.get("RANK", "0") == "0"


def join() -> Rank:
    """This process's rank, from torchrun's environment variables; Rank() without torchrun. Raises BadInput.

    On the CPU, the ranks of one machine share its cores.
    """
    values = [os.environ.get(name) for name in VARIABLES]
    if None in values:
        return SINGLE_PROCESS
    if not all(text.isdecimal() for text in values):
        raise BadInput(f"{', '.join(VARIABLES)}: must be whole numbers; start with torchrun, or unset them")
    rank = Rank(*map(int, values))
    if rank.count > 1:
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            raise BadInput("RANK is set, MASTER_ADDR or MASTER_PORT is not; start with torchrun, or unset RANK")
        distributed.init_process_group("gloo", timeout=TIMEOUT)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // rank.local_count))
    return rank
