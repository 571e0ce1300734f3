"""A training step as a CUDA graph: on a GPU, launching a small step's kernels takes longer than running them."""

import warnings
from collections import Counter

import torch
from torch import Tensor

from grafting.inputs import Step

WARM_UP = 3  # eager steps of each batch size before its capture, in which libraries and Adam allocate their state


class GraphedStep:
    """A training step that is replayed as a CUDA graph, one graph per batch size.

    The first WARM_UP steps of each batch size run eagerly; they are training steps too. If a capture fails, this
    and all later steps that have no graph run eagerly, after one warning.

    A graph holds the learning rates of its capture. Raises RuntimeError where they were changed afterwards.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer):
        self.step, self.optimizer = step, optimizer
        self.warmed_up: Counter[int] = Counter()
        # by batch size: a graph, its input tensors, image and view (B,), and its output tensor, the loss
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}
        self.rates = self._rates()  # of every capture
        self.capturable = True
        self.side_stream = torch.cuda.Stream()

    def __call__(self, image: Tensor, view: Tensor) -> Tensor:
        size = len(image)
        if self.captured and self._rates() != self.rates:
            raise RuntimeError(
                "a learning rate was changed after the step was captured as a CUDA graph, which keeps the old one"
            )
        if self.capturable and size not in self.captured and self.warmed_up[size] == WARM_UP:
            self._capture(image, view)
        if size in self.captured:
            graph, its_image, its_view, loss = self.captured[size]
            its_image.copy_(image)
            its_view.copy_(view)
            graph.replay()
            return loss
        self.warmed_up[size] += 1
        self.side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side_stream):  # as PyTorch asks of the steps before a capture
            loss = self.step(image, view)
        torch.cuda.current_stream().wait_stream(self.side_stream)
        return loss

    def _capture(self, image: Tensor, view: Tensor) -> None:
        graph, image, view = torch.cuda.CUDAGraph(), image.clone(), view.clone()
        self.rates = self._rates()
        self.optimizer.zero_grad()  # so that the capture allocates the gradients, in the graph's memory
        try:
            self._set_capturable(True)
            with torch.cuda.graph(graph):
                loss = self.step(image, view)
        except RuntimeError as error:
            self.capturable = False
            warnings.warn(f"steps are not captured as a CUDA graph: {str(error).splitlines()[0]}", stacklevel=2)
        else:
            self.captured[len(image)] = (graph, image, view, loss)
        finally:
            self._set_capturable(False)

    def _rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _set_capturable(self, capturable: bool) -> None:
        """Only while capturing: a fused Adam computes the same either way, but warns of it when run eagerly."""
        for group in self.optimizer.param_groups:
            group["capturable"] = capturable
