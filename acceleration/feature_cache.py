"""The cache of the frozen teacher's features and logits: each view of an image goes through the teacher once.

`CachedTeacher` and `CachedInputs` return what `grafting/teacher.py` and `grafting/inputs.py` return, from memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from acceleration.cuda_graphs import GraphedStep
from acceleration.fast_predictions import fast_predictions
from acceleration.winograd import products_or_itself
from data.datasets import ImageDataset
from data.views import images_at_once
from grafting.inputs import Inputs, Step
from grafting.teacher import TEST_BATCH, FrozenTeacher
from models.networks import Networks
from utils import machine
from utils.errors import BadInput
from utils.text import bar

GPU_TEST_BATCH = 5000  # of 32x32 pixels; on a GPU, launching a small batch's kernels takes longer than running them
VIEWS_AT_ONCE = 162  # all of a CIFAR image
TEST_FEATURES = 4e9  # bytes of test features that are kept; those of a VGG and 10,000 images take 0.3e9
Starts = tuple[int, ...]  # the blocks in front of which features are cached


class CachedTeacher(FrozenTeacher):
    """A frozen teacher whose features are cached, shared by all cells of a run.

    subsets: the few-shot subsets (N, 3, stored, stored) uint8 that the run will use. budget: bytes that the cache of
    their views may take, in dtype; the test features are not counted. What is cached for a subset depends on its size
    and the budget alone, so that no cell's numbers depend on which other cells run. settled: how many test predictions
    each level of acceleration/fast_predictions.py has settled so far.
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
        cache = self._cache_with_room(images)
        return CachedInputs(self, images, cache) if cache else Inputs(self, images)

    def images_to_compute(self, images: np.ndarray) -> int:
        """How many of the images inputs() would put through the teacher now, for its cache."""
        cache = self._cache_with_room(images)
        return len(cache.missing(images)) if cache else 0

    def _cache_with_room(self, images: np.ndarray) -> FeatureCache | None:
        """The cache, made anew where it has no room for the images; None where they do not fit into the budget."""
        starts = self.affordable_starts(len(images))
        if starts is None:
            return None
        if self.cache is None or self.cache.starts != starts or not self.cache.holds(images):
            self.cache = None  # frees its memory before the next one takes some
            self.cache = FeatureCache(self, self._cached_together(images, starts), starts)
        return self.cache

    def _cached_together(self, images: np.ndarray, starts: Starts) -> np.ndarray:
        """The largest subset that contains the images and is cached as they are: one of N is part of one of N + 1."""
        wanted = set(contents(images))
        alike = (subset for subset in self.subsets if self.affordable_starts(len(subset)) == starts)
        return max((subset for subset in alike if wanted <= set(contents(subset))), key=len, default=images)

    def bytes_cached(self, images: int, starts: Starts) -> int:
        """Bytes that the cache of the views of so many images takes."""
        numbers = sum(math.prod(self.shapes[start]) for start in (*starts, len(self.blocks)))
        return self.dtype.itemsize * images * self.views.count * numbers

    def affordable_starts(self, images: int) -> Starts | None:
        """In front of which blocks the features of so many images fit into the budget; None if in front of none."""
        choices = (self.starts, self.starts[:1])
        return next((starts for starts in choices if self.bytes_cached(images, starts) <= self.budget), None)

    def not_cached(self, images: int) -> str | None:
        """Which features of so many images do not fit into the budget, and how much would hold them."""
        starts = self.affordable_starts(images)
        if starts == self.starts:
            return None
        first, later = f"in front of block {self.starts[0]}", ", ".join(map(str, self.starts[1:]))
        needed = (math.ceil(self.bytes_cached(images, s) / 1e8) / 10 for s in (self.starts[:1], self.starts))
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
        """Those behind the last block are the logits, which are few."""
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


class FeatureCache:
    """Features and logits of all views of the images (N, 3, stored, stored) uint8.

    starts: in front of which blocks features are cached. An image's views are computed together when the image is first
    used, so they do not depend on what else is cached. All the memory is taken at once, so that a run that starts later
    sees how much is left. Raises BadInput where there is not enough.
    """

    def __init__(self, teacher: CachedTeacher, images: np.ndarray, starts: Starts):
        self.teacher, self.starts = teacher, starts
        self.index_of = {content: index for index, content in enumerate(dict.fromkeys(contents(images)))}
        self.filled: set[int] = set()
        needed, device = teacher.bytes_cached(len(self.index_of), starts), teacher.device
        shortage = BadInput(
            f"--memory: {needed / 1e9:.1f} GB for the cached teacher features are not available; give less"
        )
        if device.type == "cpu" and needed > machine.free_host_memory():  # Linux may promise more than that
            raise shortage
        count = len(self.index_of) * teacher.views.count
        try:
            self.cached = {  # zeros, not empty: memory is taken when it is first written
                start: torch.empty(count, *teacher.shapes[start], dtype=teacher.dtype, device=device).zero_()
                for start in (*starts, len(teacher.blocks))
            }
        except RuntimeError as error:
            raise shortage from error

    def holds(self, images: np.ndarray) -> bool:
        """Whether there is room for the views of all these images."""
        return self.index_of.keys() >= set(contents(images))

    def missing(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Those of the images, by index, whose views have not been filled in."""
        indexed = zip(map(self.index_of.get, contents(images)), images, strict=True)
        return {index: image for index, image in indexed if index not in self.filled}

    def indices(self, images: np.ndarray) -> Tensor:
        """The place of each image, (N,); their views are filled in as needed."""
        for index, image in bar(self.missing(images).items(), desc="teacher features", unit="image", delay=1):
            self._fill(index, image)
        return torch.tensor([self.index_of[content] for content in contents(images)], device=self.teacher.device)

    @torch.no_grad()
    def _fill(self, index: int, image: np.ndarray) -> None:
        inputs, count = Inputs(self.teacher, image[None]), self.teacher.views.count
        for view in torch.arange(count, device=self.teacher.device).split(
            images_at_once(VIEWS_AT_ONCE, self.teacher.image_size)
        ):
            outputs, place = inputs.features(0, torch.zeros_like(view), view), index * count + view
            for start, block in enumerate((nn.Identity(), *self.teacher.blocks)):
                outputs = block(outputs)
                if start in self.cached:
                    self.cached[start][place] = outputs.to(self.teacher.dtype)
        self.filled.add(index)


class CachedInputs(Inputs):
    """Few-shot images whose features are looked up, or computed from the nearest ones that are cached."""

    def __init__(self, teacher: CachedTeacher, images: np.ndarray, cache: FeatureCache):
        super().__init__(teacher, images)
        self.cached = cache.cached
        self.indices = cache.indices(images)

    @torch.no_grad()
    def features(self, start: int, image: Tensor, view: Tensor) -> Tensor:
        nearest = max((cached for cached in self.cached if cached <= start), default=None)
        if nearest is None:
            return super().features(start, image, view)
        features = self.cached[nearest][self.indices[image] * self.teacher.views.count + view]
        return self.teacher.blocks[nearest:start](features)

    def features_at_both(self, start: int, end: int, image: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        return self.features(start, image, view), self.features(end, image, view)

    def fast_network(self, network: nn.Module, start: int) -> nn.Module:
        """The same network; on the CPU, for float32 features, as matrix products where it can be converted."""
        if self.teacher.device.type == "cpu" and self.teacher.dtype == torch.float32:
            return products_or_itself(network, self.teacher.shapes[start])
        return network

    def fast_step(self, step: Step, optimizer: torch.optim.Optimizer) -> Step:
        """The same training step; on a GPU, captured as a CUDA graph."""
        return GraphedStep(step, optimizer) if self.teacher.device.type == "cuda" else step


def contents(images: np.ndarray) -> list[bytes]:
    """Each image's bytes, by which it is recognised in other subsets."""
    return [image.tobytes() for image in images]
