"""Progress bars: on a terminal, with what is counted and the time left; elsewhere none."""

from __future__ import annotations

from functools import partial

from tqdm import tqdm

bar = partial(tqdm, disable=None, leave=False, dynamic_ncols=True)
