"""What `torchrun` tells its processes."""

from __future__ import annotations

import os

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def started_by_torchrun() -> bool:
    return all(name in os.environ for name in VARIABLES)


def prints_for_all() -> bool:
    """Whether this process prints the messages that concern all processes."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"
