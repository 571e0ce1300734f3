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
from grafting.inputs import Inputs, Step
from grafting.teacher import TEST_BATCH, FrozenTeacher
from models.networks import Networks
from utils import machine
from utils.errors import BadInput
from utils.progress import bar

GPU_TEST_BATCH = 5000  # on a GPU, launching the kernels of a small batch takes longer than running them
VIEWS_AT_ONCE = 162  # all of a CIFAR image
Starts = tuple[int, ...]  # the blocks in front of which features are cached


class CachedTeacher(FrozenTeacher):
    """A frozen teacher whose features are cached, shared by all cells of a run.

    subsets: the few-shot subsets (N, 3, stored, stored) uint8 that the run will use, in this order. budget: bytes that
    the cache of their views may take, in dtype; the test features are not counted. What is cached for a subset depends
    on its size and the budget alone, so that no cell's numbers depend on which other cells run. settled: how many test
    predictions each level of acceleration/fast_predictions.py has settled so far.
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
        self.subsets = subsets
        self.budget = budget
        self.dtype = dtype
        self.cache: FeatureCache | None = None
        self.cached_test: dict[int, Tensor] = {}
        self.test_batch = TEST_BATCH if self.device.type == "cpu" else GPU_TEST_BATCH
        self.settled: Counter[str] = Counter()

    def inputs(self, images: np.ndarray) -> Inputs:
        """The few-shot images, with their features cached as far as they fit into the budget."""
        starts = self.affordable_starts(len(images))
        if starts is None:
            return Inputs(self, images)
        if not self._cache_serves(images, starts):
            self.cache = None  # frees its memory before the next one takes some
            self.cache = FeatureCache(self, self.cached_together(images, starts), starts)
        return CachedInputs(self, images, self.cache)

    def images_to_compute(self, images: np.ndarray) -> int:
        """How many of the images inputs() would put through the teacher now, for its cache."""
        starts = self.affordable_starts(len(images))
        if starts is None:
            return 0
        return len(self.cache.missing(images) if self._cache_serves(images, starts) else by_bytes(images))

    def _cache_serves(self, images: np.ndarray, starts: Starts) -> bool:
        return self.cache is not None and self.cache.starts == starts and self.cache.holds(images)

    def cached_together(self, images: np.ndarray, starts: Starts) -> np.ndarray:
        """The images and those of the later subsets, as far as they fit into the budget, each image once."""
        chosen = by_bytes(images)
        place = next((i for i, subset in enumerate(self.subsets) if np.array_equal(subset, images)), len(self.subsets))
        for subset in self.subsets[place + 1 :]:
            if self.affordable_starts(len(subset)) != starts:
                continue
            more = chosen | by_bytes(subset)
            if self.bytes_cached(len(more), starts) > self.budget:
                break  # it gets a cache of its own when its turn comes
            chosen = more
        return np.stack(list(chosen.values()))

    def bytes_cached(self, images: int, starts: Starts) -> int:
        """Bytes that the cache of the views of so many images takes."""
        numbers = sum(math.prod(self.shapes[start]) for start in (*starts, len(self.blocks)))
        return self.dtype.itemsize * images * self.views.count * numbers

    def affordable_starts(self, images: int) -> Starts | None:
        """In front of which blocks the features of so many images fit into the budget; None if in front of none."""
        for starts in (self.starts, self.starts[:1]):
            if self.bytes_cached(images, starts) <= self.budget:
                return starts
        return None

    def not_cached(self, images: int) -> str | None:
        """Which features of so many images do not fit into the budget, and how much would hold them."""
        starts = self.affordable_starts(images)
        if starts == self.starts:
            return None
        first, later = self.starts[0], " and ".join(map(str, self.starts[1:]))
        what, source = ("teacher features", "the images")
        if starts is not None:
            what, source = (f"teacher features in front of blocks {later}", f"those in front of block {first}")
        needed = [math.ceil(self.bytes_cached(images, s) / 1e8) / 10 for s in (self.starts[:1], self.starts)]
        least = "" if starts else f"--memory {needed[0]} would hold those in front of block {first}, "
        return (
            f"{what} do not fit into --memory and are computed from {source} at every step;"
            f" {least}--memory {needed[1]} would hold all"
        )

    def test_batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(
            self.test_features(start).split(self.test_batch), self.test_labels.split(self.test_batch), strict=True
        )

    def predictions(self, network: nn.Module, start: int) -> Tensor:
        """As the frozen teacher's; on the CPU, for float32 features, through `fast_predictions`."""
        features = self.test_features(start)
        if self.device.type == "cpu" and features.dtype == torch.float32 and start in self.starts:
            predictions, settled = fast_predictions(network, features)
            self.settled.update(settled)
            return predictions
        return super().predictions(network, start)

    def test_features(self, start: int) -> Tensor:
        """The test set's features at `start`: (N, C, H, W)."""
        if start not in self.cached_test:
            self.cached_test[start] = self._compute_test(start)
        return self.cached_test[start]

    @torch.no_grad()
    def _compute_test(self, start: int) -> Tensor:
        """Computed from the test features at the nearest start before it, where there is one."""
        before = max((s for s in self.starts if s < start), default=None)
        if before is None:
            outputs = (features for features, _ in super().test_batches(start))
        else:
            between = self.blocks[before:start]
            outputs = (between(features) for features in self.test_features(before).split(TEST_BATCH))
        batches = math.ceil(len(self.test_labels) / TEST_BATCH)
        return torch.cat(list(bar(outputs, desc="test features", unit="batch", total=batches, delay=1)))


class FeatureCache:
    """Features and logits of all views of the images (N, 3, stored, stored) uint8, each image given once.

    starts: in front of which blocks features are cached. An image's views are computed together when the image is first
    used, so they do not depend on what else is cached. All the memory is taken at once, so that a run that starts later
    sees how much is left. Raises BadInput where there is not enough.
    """

    def __init__(self, teacher: CachedTeacher, images: np.ndarray, starts: Starts):
        self.teacher = teacher
        self.starts = starts
        self.index_of = {image.tobytes(): index for index, image in enumerate(images)}
        self.filled: set[int] = set()
        needed, device = teacher.bytes_cached(len(images), starts), teacher.device
        shortage = BadInput(
            f"--memory: {needed / 1e9:.1f} GB for the cached teacher features are not available; give less"
        )
        if device.type == "cpu" and needed > machine.free_host_memory():  # Linux may promise more than that
            raise shortage
        count = len(images) * teacher.views.count
        try:
            self.cached = {  # zeros, not empty: memory is taken when it is first written
                start: torch.empty(count, *teacher.shapes[start], dtype=teacher.dtype, device=device).zero_()
                for start in (*starts, len(teacher.blocks))
            }
        except RuntimeError as error:
            raise shortage from error

    def holds(self, images: np.ndarray) -> bool:
        """Whether there is room for the views of all these images."""
        return all(image in self.index_of for image in by_bytes(images))

    def missing(self, images: np.ndarray) -> dict[int, np.ndarray]:
        """Those of the images, by index, whose views have not been filled in."""
        indexed = {self.index_of[content]: image for content, image in by_bytes(images).items()}
        return {index: image for index, image in indexed.items() if index not in self.filled}

    def indices(self, images: np.ndarray) -> Tensor:
        """The place of each image, (N,); their views are filled in as needed."""
        for index, image in bar(self.missing(images).items(), desc="teacher features", unit="image", delay=1):
            self._fill(index, image)
        places = [self.index_of[image.tobytes()] for image in images]
        return torch.tensor(places, device=self.teacher.device)

    @torch.no_grad()
    def _fill(self, index: int, image: np.ndarray) -> None:
        inputs, count = Inputs(self.teacher, image[None]), self.teacher.views.count
        for view in torch.arange(count, device=self.teacher.device).split(VIEWS_AT_ONCE):
            outputs, place = inputs.features(0, torch.zeros_like(view), view), index * count + view
            for start, block in enumerate(self.teacher.blocks, start=1):
                outputs = block(outputs)
                if start in self.cached:
                    self.cached[start][place] = outputs.to(self.teacher.dtype)
        self.filled.add(index)


class CachedInputs(Inputs):
    """Few-shot images whose features are looked up; in front of blocks without a cache, computed from the nearest."""

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

    def fast_network(self, network: nn.Module, start: int) -> nn.Module:
        """The same network; on the CPU, for float32 features, as matrix products where it can be converted."""
        if self.teacher.device.type == "cpu" and self.teacher.dtype == torch.float32:
            return products_or_itself(network, self.teacher.shapes[start])
        return network

    def fast_step(self, step: Step, optimizer: torch.optim.Optimizer) -> Step:
        """The same training step; on a GPU, captured as a CUDA graph."""
        return GraphedStep(step, optimizer) if self.teacher.device.type == "cuda" else step


def by_bytes(images: np.ndarray) -> dict[bytes, np.ndarray]:
    """The images by their bytes, each once."""
    return {image.tobytes(): image for image in images}
