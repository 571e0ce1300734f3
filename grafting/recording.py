"""A step recorded once and replayed: on a GPU, launching a step's kernels takes longer than running them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]  # images (B,) and their views (B,) -> the batch's loss
WARM_UP = 3  # steps of each batch size before it is recorded, so that libraries have chosen and optimisers begun


@dataclass(frozen=True)
class Recorded:
    """A CUDA graph, where it reads its arguments, and where it leaves its result."""

    graph: torch.cuda.CUDAGraph
    image: Tensor
    view: Tensor
    loss: Tensor

    def __call__(self, image: Tensor, view: Tensor) -> Tensor:
        self.image.copy_(image)
        self.view.copy_(view)
        self.graph.replay()
        return self.loss


class RecordedStep:
    """The same steps, all of them real: the first of each batch size as they are, the others from a CUDA graph.

    Where a step cannot be recorded, all are run as they are, after a warning.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer):
        self.step = step
        self.optimizer = optimizer
        self.warm: Counter[int] = Counter()
        self.recorded: dict[int, Recorded] = {}
        self.recordable = True
        self.aside = torch.cuda.Stream()

    def __call__(self, image: Tensor, view: Tensor) -> Tensor:
        size = len(image)
        if self.recordable and size not in self.recorded and self.warm[size] == WARM_UP:
            self._record(image, view)
        if size in self.recorded:
            return self.recorded[size](image, view)
        self.warm[size] += 1
        return self._run_aside(image, view)

    def _run_aside(self, image: Tensor, view: Tensor) -> Tensor:
        """On a stream of its own, as recording wants its warm-up."""
        self.aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.aside):
            loss = self.step(image, view)
        torch.cuda.current_stream().wait_stream(self.aside)
        return loss

    def _record(self, image: Tensor, view: Tensor) -> None:
        graph, image, view = torch.cuda.CUDAGraph(), image.clone(), view.clone()
        self.optimizer.zero_grad()  # so that the gradients are the graph's own
        try:
            self._set_capturable(True)
            with torch.cuda.graph(graph):
                loss = self.step(image, view)
        except RuntimeError as error:
            self.recordable = False
            warnings.warn(f"steps are not recorded as a CUDA graph: {str(error).splitlines()[0]}", stacklevel=2)
        else:
            self.recorded[len(image)] = Recorded(graph, image, view, loss)
        finally:
            self._set_capturable(False)

    def _set_capturable(self, capturable: bool) -> None:
        """Only while recording: a fused Adam computes the same either way, but warns of it when run as it is."""
        for group in self.optimizer.param_groups:
            group["capturable"] = capturable
