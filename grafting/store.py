"""What the frozen teacher says: features left of a cut, and logits. Computed once, looked up afterwards.

The teacher never changes, so for a given image and view its block outputs and logits are data. `PlainTeacher`
computes them each time they are asked for and is the reference; `StoredTeacher` answers the same questions from
memory. A cut c stands between blocks c-1 and c: `features(c, ...)` is the output of `teacher[:c]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from data.datasets import LabelledImages
from data.views import IMAGE_SIZE, VIEWS, Normalization, crop, pad
from grafting.screening import screened_predictions
from models.vgg import FIRST_GRAFTED, BlockwiseVGG

CUTS = (FIRST_GRAFTED, FIRST_GRAFTED + 1, FIRST_GRAFTED + 2)  # where spans begin: before blocks 3, 4 and 5
TEST_BATCH = 500


class PlainTeacher:
    """The frozen teacher beside the test set, every answer computed when it is asked for.

    teacher: frozen, on its device. test: images (N, 3, 32, 32) uint8 with labels, which only count accuracy.
    """

    def __init__(self, teacher: BlockwiseVGG, normalization: Normalization, test: LabelledImages):
        self.network = teacher
        self.device = next(teacher.parameters()).device
        self.normalization = normalization
        self.test_images = torch.from_numpy(test.images)
        self.test_labels = torch.from_numpy(test.labels).to(self.device)

    def few_shot(self, images: np.ndarray) -> PlainViews:
        """The views of few-shot images (N, 3, 32, 32) uint8, as this teacher sees them."""
        return PlainViews(self, images)

    @torch.no_grad()
    def test_batches(self, cut: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set as (features (B, C, H, W), labels (B,))."""
        batches = zip(self.test_images.split(TEST_BATCH), self.test_labels.split(TEST_BATCH), strict=True)
        for images, labels in batches:
            yield self.network[:cut](self.normalization(images.to(self.device))), labels

    @torch.no_grad()
    def predictions(self, network: nn.Module, cut: int) -> Tensor:
        """The classes of the test set (N,) that a network predicts from the features at `cut`."""
        return torch.cat([network(features).argmax(1) for features, _ in self.test_batches(cut)])

    def accuracy(self, network: nn.Module, cut: int) -> float:
        """Percent of the test set that it predicts as labelled."""
        return 100 * int((self.predictions(network, cut) == self.test_labels).sum()) / len(self.test_labels)


class PlainViews:
    """Views of few-shot images, each cut out and shown to the teacher anew."""

    def __init__(self, teacher: PlainTeacher, images: np.ndarray):
        self.teacher = teacher
        self.images = pad(torch.from_numpy(images)).to(teacher.device)

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def features(self, cut: int, image: Tensor, view: Tensor) -> Tensor:
        """Output of the teacher's blocks left of `cut` for view[b] of image[b]: (B, C, H, W)."""
        return self.teacher.network[:cut](self.teacher.normalization(crop(self.images, image, view)))

    def logits(self, image: Tensor, view: Tensor) -> Tensor:
        """The teacher's logits for view[b] of image[b]: (B, classes)."""
        return self.features(len(self.teacher.network), image, view)


class StoredTeacher(PlainTeacher):
    """The same answers from memory, shared by all cells of a run.

    subsets: the few-shot subsets (N, 3, 32, 32) uint8 that will be asked for. budget: bytes that their views'
    features may take, kept in dtype; the test set's come on top. What is kept for a subset depends on its own size
    alone, so that no cell's numbers depend on which others run.
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
        self.store: ViewStore | None = None
        self.kept_test: dict[int, Tensor] = {}

    def few_shot(self, images: np.ndarray) -> PlainViews | StoredViews:
        cuts = self.affordable_cuts(len(images))
        if cuts is None:
            return super().few_shot(images)
        if self.store is None or self.store.cuts != cuts:
            self.store = None  # gives its memory back before the next one takes some
            alike = [subset for subset in self.subsets if self.affordable_cuts(len(subset)) == cuts]
            self.store = ViewStore(self, np.unique(np.concatenate(alike), axis=0), cuts, self.dtype)
        return self.store.views(images)

    def affordable_cuts(self, images: int) -> tuple[int, ...] | None:
        """The cuts whose features can be kept for so many images; None if not even the first one's."""
        for cuts in (CUTS, CUTS[:1]):
            if bytes_kept(self.network, images, cuts, self.dtype) <= self.budget:
                return cuts
        return None

    def test_batches(self, cut: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.test_features(cut).split(TEST_BATCH), self.test_labels.split(TEST_BATCH), strict=True)

    def predictions(self, network: nn.Module, cut: int) -> Tensor:
        """As the plain teacher's; on the CPU, most of them proved by arithmetic that is faster than float32's."""
        features = self.test_features(cut)
        if self.device.type == "cpu" and features.dtype == torch.float32 and cut in CUTS:
            return screened_predictions(network, features)
        return super().predictions(network, cut)

    def test_features(self, cut: int) -> Tensor:
        """The test set's features at `cut`: (N, C, H, W)."""
        if cut not in self.kept_test:
            self.kept_test[cut] = self._compute_test(cut)
        return self.kept_test[cut]

    @torch.no_grad()
    def _compute_test(self, cut: int) -> Tensor:
        """From the features at the cut before it."""
        before = max((c for c in CUTS if c < cut), default=None)
        if before is None:
            return torch.cat([features for features, _ in super().test_batches(cut)])
        between = self.network[before:cut]
        return torch.cat([between(features) for features in self.test_features(before).split(TEST_BATCH)])


class ViewStore:
    """Features and logits of all views of the images (N, 3, 32, 32) uint8, each image given once.

    cuts: where features are kept, in dtype; at another cut they are computed from the nearest kept one on its left. An
    image's 162 views are computed together when it is first asked for, so they do not depend on what else is kept.
    """

    def __init__(self, teacher: PlainTeacher, images: np.ndarray, cuts: tuple[int, ...], dtype: torch.dtype):
        self.teacher = teacher
        self.cuts = cuts
        self.row_of = {image.tobytes(): row for row, image in enumerate(images)}
        self.filled: set[int] = set()
        shapes = output_shapes(teacher.network)
        self.kept = {
            cut: torch.empty(len(images) * VIEWS, *shapes[cut], dtype=dtype, device=teacher.device)
            for cut in (*cuts, len(teacher.network))
        }

    def views(self, images: np.ndarray) -> StoredViews:
        """The views of some of the images, filled in as needed."""
        rows = [self.row_of[image.tobytes()] for image in images]
        for row, image in zip(rows, images, strict=True):
            if row not in self.filled:
                self._fill(row, image)
        return StoredViews(self, torch.tensor(rows, device=self.teacher.device))

    @torch.no_grad()
    def _fill(self, row: int, image: np.ndarray) -> None:
        network, device = self.teacher.network, self.teacher.device
        view = torch.arange(VIEWS, device=device)
        padded = pad(torch.from_numpy(image)[None]).to(device)
        outputs = self.teacher.normalization(crop(padded, torch.zeros_like(view), view))
        for block in range(len(network)):
            outputs = network[block : block + 1](outputs)
            if block + 1 in self.kept:
                self.kept[block + 1][row * VIEWS : (row + 1) * VIEWS] = outputs
        self.filled.add(row)


class StoredViews:
    """Views of few-shot images, looked up. rows: (N,), each image's row in the store."""

    def __init__(self, store: ViewStore, rows: Tensor):
        self.store = store
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def features(self, cut: int, image: Tensor, view: Tensor) -> Tensor:
        """As PlainViews.features."""
        nearest = max(kept for kept in self.store.kept if kept <= cut)
        features = self.store.kept[nearest][self.rows[image] * VIEWS + view]
        return self.store.teacher.network[nearest:cut](features)

    def logits(self, image: Tensor, view: Tensor) -> Tensor:
        """As PlainViews.logits."""
        return self.features(len(self.store.teacher.network), image, view)


def output_shapes(teacher: BlockwiseVGG) -> dict[int, tuple[int, ...]]:
    """Shape of one image's features at every cut, the logits' last: 3 -> (256, 4, 4), ..., 6 -> (classes,)."""
    blocks = range(len(teacher.features))
    shapes = {b + 1: (teacher.architecture.width_after(b), *(IMAGE_SIZE >> (b + 1),) * 2) for b in blocks}
    return {**shapes, len(teacher): (teacher.classes,)}


def bytes_kept(teacher: BlockwiseVGG, images: int, cuts: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """Memory that a store of the views of so many images takes, in bytes."""
    shapes = output_shapes(teacher)
    return dtype.itemsize * images * VIEWS * sum(math.prod(shapes[cut]) for cut in (*cuts, len(teacher)))
