"""Random numbers that depend on their purpose only, never on what ran before.

Every draw of a cell is a pure function of (seed, shots, trial, purpose, epoch). So the order of cells, an
interruption, or other cells cannot change a cell's numbers, and nothing of the generator's state
needs to be saved to resume.
"""

import zlib

import numpy as np
import torch


def generator(*purpose: int | str) -> np.random.Generator:
    """A numpy generator. purpose: integers and strings that determine the draw, e.g. (seed, N, trial, "B0", epoch).

    Zeros at the end of a purpose make no difference to numpy.
    """
    return np.random.default_rng([zlib.crc32(p.encode()) if isinstance(p, str) else p for p in purpose])


def torch_generator(*purpose: int | str) -> torch.Generator:
    """The same for torch, on the CPU, so that weights on a GPU start from the same values."""
    return torch.Generator().manual_seed(int(generator(*purpose).integers(2**63)))
