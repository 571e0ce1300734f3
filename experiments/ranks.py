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
    """The leader has stopped and said why; the other ranks stop without a word."""


class RankLost(Exception):
    """Another rank is gone, so nobody can wait for it."""


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
        """Go on when every rank has come here. Raises RankLost."""
        self._agree(True)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader goes through the block before the others: it fetches, trains and writes, they read.

        Where the leader fails there, its error is its own, and the others raise LeaderFailed. Raises RankLost.
        """
        if not self.leads and not self._agree(True):
            raise LeaderFailed
        sound = False
        try:
            yield
            sound = True
        finally:
            if self.leads:
                self._agree(sound)

    def _agree(self, sound: bool) -> bool:
        """Wait for every rank; whether all of them say that they are sound."""
        if self.count == 1:
            return sound
        sounds = torch.tensor(int(sound))
        try:
            distributed.all_reduce(sounds, distributed.ReduceOp.MIN)
        except RuntimeError as error:  # the connection is closed
            raise RankLost("another process of this torchrun is gone; see its message, and run again") from error
        return bool(sounds)


ALONE = Rank()


def speaks() -> bool:
    """Whether this process tells the user what concerns all ranks."""
    return os.environ.get("RANK", "0") == "0"


def join() -> Rank:
    """This process's rank, from what torchrun says; the only one where it says nothing. Raises BadInput.

    On the CPU the ranks of one machine share its cores.
    """
    said = [os.environ.get(name) for name in VARIABLES]
    if None in said:
        return ALONE
    if not all(text.isdecimal() for text in said):
        raise BadInput(f"{', '.join(VARIABLES)}: must be whole numbers; start with torchrun, or unset them")
    rank = Rank(*map(int, said))
    if rank.count > 1:
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            raise BadInput("RANK is set, MASTER_ADDR or MASTER_PORT is not; start with torchrun, or unset RANK")
        distributed.init_process_group("gloo", timeout=TIMEOUT)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // rank.local_count))
    return rank
