"""The frozen teacher with a cache of features and logits: each view of an image goes through it once.

`CachedTeacher` returns what `grafting/teacher.py` returns, from memory; the features of its inputs are looked up too
(acceleration/cached_inputs.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acceleration.cached_inputs import VIEWS_AT_ONCE, CachedInputs, FeatureCache, Starts, all_cached, contents
from acceleration.fast_predictions import fast_predictions
from data.datasets import ImageDataset
from data.views import TEST_BATCH, images_at_once
from grafting.inputs import Inputs
from grafting.mixed_views import MixedInputs
from grafting.teacher import FrozenTeacher
from models.networks import Networks
from utils.text import bar

GPU_TEST_BATCH = 5000  # of 32x32 pixels; on a GPU, launching a small batch's kernels takes longer than running them
TEST_FEATURES = 4e9  # bytes of test features that are kept; those of a VGG and 10,000 images take 0.3e9


class CachedTeacher(FrozenTeacher):
    """A frozen teacher whose features are cached, shared by all cells of a run.

    subsets: the few-shot subsets (N, 3, stored, stored) uint8 that the run will use. budget: bytes that the features of
    their views and mixed views may take, in dtype; the test features are not counted. What is cached for a subset
    depends on its size and the budget alone, so that no cell's numbers depend on which other cells run. settled: how
    many test predictions each level of acceleration/fast_predictions.py has settled so far.
    """

    def __init__(
        self,
        network: nn.Module,
        networks: Networks,
        dataset: ImageDataset,
        subsets: Sequence[np.ndarray],
        budget: int,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(network, networks, dataset)
        self.starts = tuple(networks.grafted)
        self.subsets, self.budget, self.dtype = subsets, budget, dtype
        self.cache: FeatureCache | None = None
        self.mixed: dict[tuple[Any, ...], CachedInputs] = {}  # by images and seed key
        self.cached_test: dict[int, Tensor] = {}
        of_32 = TEST_BATCH if self.device.type == "cpu" else GPU_TEST_BATCH
        self.test_batch = images_at_once(of_32, self.image_size)
        self.test_starts = self._affordable_test_starts()
        self.settled: Counter[str] = Counter()

    def caches(self, epochs: int) -> bool:
        """Whether caching all views takes less time than computing those that so many epochs show."""
        return self.views.count <= max(epochs, VIEWS_AT_ONCE)

    def inputs(self, images: np.ndarray) -> Inputs:
        """The few-shot images, with their features cached as far as they fit into the budget."""
        inputs, cache = Inputs(self, images), self._cache_with_room(images)
        return CachedInputs(inputs, cache.cached, cache.indices(images)) if cache else inputs

    def mixed_inputs(self, images: np.ndarray, *seed_key: int | str) -> Inputs:
        """The images in mixed views, with their features cached as far as they fit into the budget.

        They are kept for the next cell as long as there is room.
        """
        wanted = (images.tobytes(), *seed_key)
        if wanted not in self.mixed:
            inputs = MixedInputs(self, images, *seed_key)
            count = len(inputs) * inputs.views
            starts = self.affordable_starts(count)
            if starts is None:
                return inputs
            self._make_room(self.bytes_cached(count, starts))
            self.mixed[wanted] = all_cached(inputs, starts)
        return self.mixed[wanted]

    def _make_room(self, needed: int) -> None:
        """Give up what is cached until so many bytes more fit into the budget: first the oldest mixed views."""
        while self.mixed and self._held + needed > self.budget:
            self.mixed.pop(next(iter(self.mixed)))
        if self._held + needed > self.budget:
            self.cache = None

    @property
    def _held(self) -> int:
        """Bytes of all that is cached of few-shot images."""
        caches = [inputs.cached for inputs in self.mixed.values()] + ([self.cache.cached] if self.cache else [])
        return sum(features.nbytes for cached in caches for features in cached.values())

    def images_to_compute(self, images: np.ndarray) -> int:
        """How many of the images inputs() would put through the teacher now, for its cache."""
        cache = self._cache_with_room(images)
        return len(cache.missing(images)) if cache else 0

    def _cache_with_room(self, images: np.ndarray) -> FeatureCache | None:
        """The cache, made anew where it has no room for the images; None where they do not fit into the budget."""
        starts = self.affordable_starts(len(images) * self.views.count)
        if starts is None:
            return None
        if self.cache is None or self.cache.starts != starts or not self.cache.holds(images):
            self.cache = None  # frees its memory before the next one takes some
            together = self._cached_together(images, starts)
            self._make_room(self.bytes_cached(len(together) * self.views.count, starts))
            self.cache = FeatureCache(self, together, starts)
        return self.cache

    def _cached_together(self, images: np.ndarray, starts: Starts) -> np.ndarray:
        """The largest subset that contains the images and is cached as they are: one of N is part of one of N + 1."""
        wanted = set(contents(images))
        alike = (subset for subset in self.subsets if self.affordable_starts(len(subset) * self.views.count) == starts)
        return max((subset for subset in alike if wanted <= set(contents(subset))), key=len, default=images)

    def bytes_cached(self, views: int, starts: Starts) -> int:
        """Bytes that the cached features and logits of so many views take."""
        numbers = sum(math.prod(self.shapes[start]) for start in (*starts, len(self.blocks)))
        return self.dtype.itemsize * views * numbers

    def affordable_starts(self, views: int) -> Starts | None:
        """In front of which blocks the features of so many views fit into the budget; None if in front of none."""
        choices = (self.starts, self.starts[:1])
        return next((starts for starts in choices if self.bytes_cached(views, starts) <= self.budget), None)

    def not_cached(self, views: int) -> str | None:
        """Which features of so many views do not fit into the budget, and how much would hold them."""
        starts = self.affordable_starts(views)
        if starts == self.starts:
            return None
        first, later = f"in front of block {self.starts[0]}", ", ".join(map(str, self.starts[1:]))
        needed = (math.ceil(self.bytes_cached(views, s) / 1e8) / 10 for s in (self.starts[:1], self.starts))
        for_first, for_all = (f"--memory {gigabytes} would hold" for gigabytes in needed)
        if starts:
            what, source, enough = f"teacher features in front of blocks {later}", f"those {first}", f"{for_all} all"
        else:
            what, source, enough = "teacher features", "the images", f"{for_first} those {first}, {for_all} all"
        return f"{what} do not fit into --memory and are computed from {source} at every step; {enough}"

    def _affordable_test_starts(self) -> Starts:
        """In front of which blocks the test features are kept: from the last one on, as far as they fit."""
        kept, left = [], TEST_FEATURES
        for start in reversed(self.starts):
            left -= 4 * len(self.test_labels) * math.prod(self.shapes[start])
            kept = [start, *kept] if left >= 0 else kept
        return tuple(kept)

    def test_batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._keeps_test_features(start):
            return super().test_batches(start)
        features, labels = self.test_features(start), self.test_labels
        return zip(features.split(self.test_batch), labels.split(self.test_batch), strict=True)

    def _keeps_test_features(self, start: int) -> bool:
        """Whether the test set's features at `start` are kept; its logits, behind the last block, always are."""
        return start in self.test_starts or start == len(self.blocks)

    def predictions(self, network: nn.Module, start: int) -> Tensor:
        """As the frozen teacher's; on the CPU, for float32 features, through `fast_predictions`."""
        if not self._keeps_test_features(start):
            return super().predictions(network, start)
        features = self.test_features(start)
        if self.device.type == "cpu" and features.dtype == torch.float32 and start in self.starts:
            predictions, settled = fast_predictions(network, features)
            self.settled.update(settled)
            return predictions
        return super().predictions(network, start)

    @torch.no_grad()
    def test_features(self, start: int) -> Tensor:
        """The test set's features at `start`, (N, C, H, W), from the test features at the nearest start before it."""
        if start not in self.cached_test:
            before = max((s for s in self.test_starts if s < start), default=None)
            if before is None:
                outputs = (features for features, _ in super().test_batches(start))
            else:
                outputs = map(self.blocks[before:start], self.test_features(before).split(self.front_batch))
            batches = math.ceil(len(self.test_labels) / self.front_batch)
            outputs = bar(outputs, desc="test features", unit="batch", total=batches, delay=1)
            self.cached_test[start] = torch.cat(list(outputs))
        return self.cached_test[start]
