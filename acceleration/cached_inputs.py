"""The cache of the features and logits of few-shot images, and the inputs that look them up in it.

`CachedInputs` return what `grafting/inputs.py` returns, from memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from acceleration.cuda_graphs import GraphedStep
from acceleration.winograd import products_or_itself
from data.views import images_at_once
from grafting.inputs import Inputs, Step
from utils import machine
from utils.errors import BadInput
from utils.text import bar

if TYPE_CHECKING:
    from acceleration.feature_cache import CachedTeacher

VIEWS_AT_ONCE = 162  # of 32x32 pixels go through the teacher together: all of a CIFAR image
Starts = tuple[int, ...]  # the blocks in front of which features are cached
Cached = dict[int, Tensor]  # the features of each view, by start


class FeatureCache:
    """Features and logits of all views of the images (N, 3, stored, stored) uint8.

    starts: in front of which blocks features are cached. An image's views are computed together when the image is first
    used, so they do not depend on what else is cached. Raises BadInput where there is not enough memory.
    """

    def __init__(self, teacher: CachedTeacher, images: np.ndarray, starts: Starts):
        self.teacher, self.starts = teacher, starts
        self.index_of = {content: index for index, content in enumerate(dict.fromkeys(contents(images)))}
        self.filled: set[int] = set()
        self.cached = allocated(teacher, len(self.index_of) * teacher.views.count, starts)

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

    def _fill(self, index: int, image: np.ndarray) -> None:
        inputs, at_once = Inputs(self.teacher, image[None]), images_at_once(VIEWS_AT_ONCE, self.teacher.image_size)
        for view in torch.arange(inputs.views, device=self.teacher.device).split(at_once):
            store(self.cached, inputs, torch.zeros_like(view), view, index * inputs.views + view)
        self.filled.add(index)


def allocated(teacher: CachedTeacher, count: int, starts: Starts) -> Cached:
    """Memory for the features of so many views in front of the blocks `starts`, and for their logits.

    It is taken at once, so that a run that starts later sees how much is left. Raises BadInput where there is not
    enough.
    """
    needed, device = teacher.bytes_cached(count, starts), teacher.device
    shortage = BadInput(f"--memory: {needed / 1e9:.1f} GB for the cached teacher features are not available; give less")
    if device.type == "cpu" and needed > machine.free_host_memory():  # Linux may promise more than that
        raise shortage
    try:
        return {  # zeros, not empty: memory is taken when it is first written
            start: torch.empty(count, *teacher.shapes[start], dtype=teacher.dtype, device=device).zero_()
            for start in (*starts, len(teacher.blocks))
        }
    except RuntimeError as error:
        raise shortage from error


@torch.no_grad()
def store(cached: Cached, inputs: Inputs, image: Tensor, view: Tensor, place: Tensor) -> None:
    """Compute the features of view[b] of image[b] and put them at place[b]."""
    outputs = inputs.features(0, image, view)
    for start, block in enumerate((nn.Identity(), *inputs.teacher.blocks)):
        outputs = block(outputs)
        if start in cached:
            cached[start][place] = outputs.to(cached[start].dtype)


class CachedInputs(Inputs):
    """Inputs whose features are looked up, or computed from the nearest ones that are cached.

    inputs: the same without a cache. indices: each image's place in it.
    """

    def __init__(self, inputs: Inputs, cached: Cached, indices: Tensor):
        self.teacher, self.views = inputs.teacher, inputs.views
        self.inputs, self.cached, self.indices = inputs, cached, indices

    def __len__(self) -> int:
        return len(self.inputs)

    def shown(self, image: Tensor, view: Tensor) -> Tensor:
        return self.inputs.shown(image, view)

    @torch.no_grad()
    def features(self, start: int, image: Tensor, view: Tensor) -> Tensor:
        nearest = max((cached for cached in self.cached if cached <= start), default=None)
        if nearest is None:
            return super().features(start, image, view)
        features = self.cached[nearest][self.indices[image] * self.views + view]
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


def all_cached(inputs: Inputs, starts: Starts) -> CachedInputs:
    """The same inputs with the features of all views cached. Raises BadInput where there is not enough memory."""
    teacher, count = inputs.teacher, len(inputs) * inputs.views
    cached = allocated(teacher, count, starts)
    at_once = images_at_once(VIEWS_AT_ONCE, teacher.image_size)
    batches = torch.arange(count, device=teacher.device).split(at_once)
    for place in bar(batches, desc="teacher features", unit="batch", total=len(batches), delay=1):
        store(cached, inputs, place // inputs.views, place % inputs.views, place)
    return CachedInputs(inputs, cached, torch.arange(len(inputs), device=teacher.device))


def contents(images: np.ndarray) -> list[bytes]:
    """Each image's bytes, by which it is recognised in other subsets."""
    return [image.tobytes() for image in images]
