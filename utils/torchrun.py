"""Which of the processes of `torchrun` this one is. They share nothing but folders and file locks."""

import os
from typing import NamedTuple


class Process(NamedTuple):
    """One of `count` processes, of which `local_count` are on this machine."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one prints what is printed only once."""
        return self.index == 0


def this_process() -> Process:
    """From torchrun's environment variables; a single process where they are missing or make no sense."""
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    if not all(text.isdecimal() for text in found):
        return Process()
    process = Process(*map(int, found))
    makes_sense = process.index < process.count and process.local_index < process.local_count
    return process if makes_sense else Process()
