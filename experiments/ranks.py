"""Sharing work between the processes that `torchrun` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

PATIENCE = timedelta(days=30)  # ranks finish their last cells at different times


@dataclass(frozen=True)
class Rank:
    """One of `count` processes, `local_count` of which are on this machine."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that prepares, and prints what is printed once."""
        return self.index == 0

    def wait(self) -> None:
        """Go on when every rank has come here."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader goes through the block before the others do: it fetches, trains and writes; they find."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


ALONE = Rank()


def join() -> Rank:
    """This process's rank, from what torchrun says; the only one where it says nothing.

    On the CPU the ranks of one machine share its cores.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return ALONE
    rank = Rank(*(int(os.environ[name]) for name in names))
    if rank.count > 1:
        distributed.init_process_group("gloo", timeout=PATIENCE)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // rank.local_count))
    return rank
