"""The cache of the frozen teacher's features and logits: each view of an image goes through the teacher once.

`CachedTeacher` returns what `grafting.teacher.FrozenTeacher` returns, from memory.
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
from acceleration.winograd import as_matrix_products
from data.datasets import LabelledImages
from data.views import IMAGE_SIZE, VIEWS, Normalization, crop, pad
from grafting.teacher import TEST_BATCH, FrozenTeacher, Step, Views
from models.vgg import FIRST_GRAFTED, BlockwiseVGG
from utils import machine
from utils.errors import BadInput
from utils.progress import bar

STARTS = (FIRST_GRAFTED, FIRST_GRAFTED + 1, FIRST_GRAFTED + 2)  # where spans start: at blocks 3, 4 and 5
GPU_TEST_BATCH = 5000  # on a GPU, launching the kernels of a small batch takes longer than running them


class CachedTeacher(FrozenTeacher):
    """A frozen teacher whose features are cached, shared by all cells of a run.

    subsets: the few-shot subsets (N, 3, 32, 32) uint8 that the run will use, in this order. budget: bytes that the
    cache of their views may take, in dtype; the test features are not counted. What is cached for a subset depends on
    its size and the budget alone, so that no cell's numbers depend on which other cells run. settled: how many test
    predictions each level of acceleration/fast_predictions.py has settled so far.
    """

    def __init__(
        self,
        teacher: BlockwiseVGG,
        normalization: Normalization,
        test: LabelledImages,
        subsets: Sequence[np.ndarray],
        budget: int,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(teacher, normalization, test)
        self.subsets = subsets
        self.budget = budget
        self.dtype = dtype
        self.cache: FeatureCache | None = None
        self.cached_test: dict[int, Tensor] = {}
        self.test_batch = TEST_BATCH if self.device.type == "cpu" else GPU_TEST_BATCH
        self.settled: Counter[str] = Counter()

    def few_shot(self, images: np.ndarray) -> Views:
        starts = self.affordable_starts(len(images))
        if starts is None:
            return super().few_shot(images)
        if not self._cache_serves(images, starts):
            self.cache = None  # frees its memory before the next one takes some
            self.cache = FeatureCache(self, self.cached_together(images, starts), starts, self.dtype)
        return self.cache.views(images)

    def images_to_compute(self, images: np.ndarray) -> int:
        """How many of the images few_shot() would put through the teacher now, for its cache."""
        starts = self.affordable_starts(len(images))
        if starts is None:
            return 0
        return len(self.cache.missing(images) if self._cache_serves(images, starts) else by_bytes(images))

    def _cache_serves(self, images: np.ndarray, starts: tuple[int, ...]) -> bool:
        return self.cache is not None and self.cache.starts == starts and self.cache.holds(images)

    def cached_together(self, images: np.ndarray, starts: tuple[int, ...]) -> np.ndarray:
        """The images and those of the later subsets, as far as they fit into the budget, each image once."""
        chosen = by_bytes(images)
        place = next((i for i, subset in enumerate(self.subsets) if np.array_equal(subset, images)), len(self.subsets))
        for subset in self.subsets[place + 1 :]:
            if self.affordable_starts(len(subset)) != starts:
                continue
            more = chosen | by_bytes(subset)
            if bytes_cached(self.network, len(more), starts, self.dtype) > self.budget:
                break  # it gets a cache of its own when its turn comes
            chosen = more
        return np.stack(list(chosen.values()))

    def affordable_starts(self, images: int) -> tuple[int, ...] | None:
        """In front of which blocks the features of so many images fit into the budget; None if in front of none."""
        for starts in (STARTS, STARTS[:1]):
            if bytes_cached(self.network, images, starts, self.dtype) <= self.budget:
                return starts
        return None

    def not_cached(self, images: int) -> str | None:
        """Which features of so many images do not fit into the budget, and how much would hold them."""
        starts = self.affordable_starts(images)
        if starts == STARTS:
            return None
        what, source = ("teacher features", "the images")
        if starts is not None:
            what, source = ("teacher features in front of blocks 4 and 5", "those in front of block 3")
        needed = [math.ceil(bytes_cached(self.network, images, s, self.dtype) / 1e8) / 10 for s in (STARTS[:1], STARTS)]
        first = "" if starts else f"--memory {needed[0]} would hold those in front of block 3, "
        return (
            f"{what} do not fit into --memory and are computed from {source} at every step;"
            f" {first}--memory {needed[1]} would hold all"
        )

    def test_batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(
            self.test_features(start).split(self.test_batch), self.test_labels.split(self.test_batch), strict=True
        )

    def predictions(self, network: nn.Module, start: int) -> Tensor:
        """As the frozen teacher's; on the CPU, for float32 features, through `fast_predictions`."""
        features = self.test_features(start)
        if self.device.type == "cpu" and features.dtype == torch.float32 and start in STARTS:
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
        before = max((s for s in STARTS if s < start), default=None)
        if before is None:
            outputs = (features for features, _ in super().test_batches(start))
        else:
            between = self.network[before:start]
            outputs = (between(features) for features in self.test_features(before).split(TEST_BATCH))
        batches = math.ceil(len(self.test_labels) / TEST_BATCH)
        return torch.cat(list(bar(outputs, desc="test features", unit="batch", total=batches, delay=1)))


class FeatureCache:
    """Features and logits of all views of the images (N, 3, 32, 32) uint8, each image given once.

    starts: in front of which blocks features are cached, in dtype; in front of other blocks they are computed from the
    nearest cached ones before. An image's 162 views are computed together when the image is first used, so they do not
    depend on what else is cached. All the memory is taken at once, so that a run that starts later sees how much is
    left. Raises BadInput where there is not enough.
    """

    def __init__(self, teacher: FrozenTeacher, images: np.ndarray, starts: tuple[int, ...], dtype: torch.dtype):
        self.teacher = teacher
        self.starts = starts
        self.dtype = dtype
        self.index_of = {image.tobytes(): index for index, image in enumerate(images)}
        self.filled: set[int] = set()
        shapes = output_shapes(teacher.network)
        needed = bytes_cached(teacher.network, len(images), starts, dtype)
        shortage = BadInput(
            f"--memory: {needed / 1e9:.1f} GB for the cached teacher features are not available; give less"
        )
        if teacher.device.type == "cpu" and needed > machine.free_host_memory():  # Linux may promise more than that
            raise shortage
        try:
            self.cached = {  # zeros, not empty: memory is taken when it is first written
                start: torch.empty(len(images) * VIEWS, *shapes[start], dtype=dtype, device=teacher.device).zero_()
                for start in (*starts, len(teacher.network))
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

    def views(self, images: np.ndarray) -> CachedViews:
        """The views of some of the images, filled in as needed."""
        indices = [self.index_of[image.tobytes()] for image in images]
        for index, image in bar(self.missing(images).items(), desc="teacher features", unit="image", delay=1):
            self._fill(index, image)
        return CachedViews(self, torch.tensor(indices, device=self.teacher.device))

    @torch.no_grad()
    def _fill(self, index: int, image: np.ndarray) -> None:
        network, device = self.teacher.network, self.teacher.device
        view = torch.arange(VIEWS, device=device)
        padded = pad(torch.from_numpy(image)[None]).to(device)
        outputs = self.teacher.normalization(crop(padded, torch.zeros_like(view), view))
        for block in range(len(network)):
            outputs = network[block : block + 1](outputs)
            if block + 1 in self.cached:
                self.cached[block + 1][index * VIEWS : (index + 1) * VIEWS] = outputs
        self.filled.add(index)


class CachedViews(Views):
    """Views of few-shot images, looked up. indices: (N,), each image's index in the cache."""

    def __init__(self, cache: FeatureCache, indices: Tensor):
        self.cache = cache
        self.teacher = cache.teacher
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    @torch.no_grad()
    def features(self, start: int, image: Tensor, view: Tensor) -> Tensor:
        nearest = max(cached for cached in self.cache.cached if cached <= start)
        features = self.cache.cached[nearest][self.indices[image] * VIEWS + view]
        return self.teacher.network[nearest:start](features)

    def fast_network(self, network: nn.Module, start: int) -> nn.Module:
        """The same network; on the CPU, for float32 features, as matrix products."""
        if self.teacher.device.type == "cpu" and self.cache.dtype == torch.float32:
            return as_matrix_products(network, output_shapes(self.teacher.network)[start][-1])
        return network

    def fast_step(self, step: Step, optimizer: torch.optim.Optimizer) -> Step:
        """The same training step; on a GPU, captured as a CUDA graph."""
        return GraphedStep(step, optimizer) if self.teacher.device.type == "cuda" else step


def by_bytes(images: np.ndarray) -> dict[bytes, np.ndarray]:
    """The images (N, 3, 32, 32) by their bytes, each once."""
    return {image.tobytes(): image for image in images}


def output_shapes(teacher: BlockwiseVGG) -> dict[int, tuple[int, ...]]:
    """Shape of one image's features at every start, the logits' last: 3 -> (256, 4, 4), ..., 6 -> (classes,)."""
    blocks = range(len(teacher.features))
    shapes = {b + 1: (teacher.architecture.width_after(b), *(IMAGE_SIZE >> (b + 1),) * 2) for b in blocks}
    return {**shapes, len(teacher): (teacher.classes,)}


def bytes_cached(
    teacher: BlockwiseVGG, images: int, starts: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> int:
    """Bytes that the cache of the views of so many images takes."""
    shapes = output_shapes(teacher)
    return dtype.itemsize * images * VIEWS * sum(math.prod(shapes[start]) for start in (*starts, len(teacher)))
