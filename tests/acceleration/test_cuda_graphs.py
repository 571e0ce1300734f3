"""A captured step is the step. Without a GPU, a replacement for CUDA graphs shows that each call is one real step."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from acceleration.cuda_graphs import WARM_UP, GraphedStep


class Training:
    """A linear layer that learns something. With the replacement, what is captured runs on replay."""

    def __init__(self):
        self.layer = nn.Linear(3, 2)
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.zeros_(self.layer.bias)
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=0.1, fused=True)
        self.capturing = None
        self.ran = 0

    def step(self, image, view):
        if self.capturing:
            assert all(group["capturable"] for group in self.optimizer.param_groups)
            loss = torch.zeros(())
            self.capturing.replay = lambda: loss.copy_(self.learn(image, view))
            return loss
        self.ran += 1
        return self.learn(image, view)

    def learn(self, image, view):
        logits, wanted = (
            self.layer(functional.one_hot(image % 3, 3).float()),
            functional.one_hot(view % 2, 2).float(),
        )
        loss = (logits - wanted).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @contextmanager
    def graph(self, graph):
        self.capturing = graph
        yield
        self.capturing = None


@pytest.fixture(autouse=True)
def replaced_graphs(monkeypatch):
    """Streams that are none, and graphs that hold what they are given."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))


def batches():
    """Ten, of two sizes in turn, as a subset's whole batches and its rest."""
    random = torch.Generator().manual_seed(0)
    return [torch.randint(100, (2, size), generator=random).unbind() for size in (5, 2) * 5]


def test_each_call_is_one_step(monkeypatch):
    plain, training = Training(), Training()
    monkeypatch.setattr(torch.cuda, "graph", training.graph)
    step = GraphedStep(training.step, training.optimizer)
    assert [step(*batch).item() for batch in batches()] == [plain.step(*batch).item() for batch in batches()]
    assert torch.equal(training.layer.weight, plain.layer.weight)
    assert training.ran == 2 * WARM_UP and set(step.captured) == {5, 2}
    assert not any(group["capturable"] for group in training.optimizer.param_groups)


def test_where_nothing_can_be_captured_steps_run_as_they_are(monkeypatch):
    plain, training = Training(), Training()

    def graph(graph):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    step = GraphedStep(training.step, training.optimizer)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph: operation not permitted$") as warned:
        losses = [step(*batch).item() for batch in batches()]
    assert losses == [plain.step(*batch).item() for batch in batches()]
    assert len(warned) == 1 and training.ran == 10
    assert not any(group["capturable"] for group in training.optimizer.param_groups)


def test_a_learning_rate_that_a_graph_would_ignore_is_refused(monkeypatch):
    """Before the first capture it may change."""
    training = Training()
    monkeypatch.setattr(torch.cuda, "graph", training.graph)
    step, (group,) = GraphedStep(training.step, training.optimizer), training.optimizer.param_groups
    for number, batch in enumerate(batches()):
        group["lr"] = 0.1 / (1 + min(number, WARM_UP))
        step(*batch)
    assert step.captured
    group["lr"] = 0.01
    with pytest.raises(RuntimeError, match="a learning rate was changed after the step was captured as a CUDA graph"):
        step(*batches()[0])
