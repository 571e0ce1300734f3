"""Random numbers that depend on their seed key only, never on what ran before.

Every draw of a cell is a pure function of its seed key: (seed, shots, trial, phase, epoch), that of mixed views of
(seed, shots). So the order of cells, an interruption, or other cells cannot change a cell's numbers, and nothing of the
generator's state needs to be saved to resume.
"""

import zlib

import numpy as np
import torch


def generator(*seed_key: int | str) -> np.random.Generator:
    """A numpy generator. seed_key: integers and strings that determine the draw, e.g. (seed, N, trial, "B0", epoch).

    Zeros at the end of a seed key make no difference to numpy.
    """
    return np.random.default_rng([zlib.crc32(p.encode()) if isinstance(p, str) else p for p in seed_key])


def torch_generator(*seed_key: int | str) -> torch.Generator:
    """The same for torch, on the CPU, so that weights on a GPU start from the same values."""
    return torch.Generator().manual_seed(_seed(*seed_key))


def seed_layers(*seed_key: int | str) -> None:
    """From here on, what layers such as dropout draw from torch's own generators follows from the seed key."""
    torch.manual_seed(_seed(*seed_key))


def _seed(*seed_key: int | str) -> int:
    return int(generator(*seed_key).integers(2**63))
