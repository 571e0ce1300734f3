"""Distilling a scion over a span: the one training loop of both stages (docs/method.md, sections 3 to 6).

A graft is `teacher[j:](scion(teacher[:i](x)))`. Only the scion is trained; its gradient comes through the teacher's
blocks behind it. The features in front of the scion and the teacher's logits never change (grafting/teacher.py), so
they can be cached (acceleration/cached_inputs.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from grafting.inputs import Inputs, Step
from grafting.recipes import Phase
from grafting.scions import parameters_by_role
from grafting.teacher import FrozenTeacher
from models.checkpoints import on_cpu
from models.logits import LogitsNotFinite
from models.networks import batch_sizes, batchnorms_in
from utils.seeds import generator, seed_layers


class NotFinite(Exception):
    """The loss of an epoch, a test logit, or a weight after the last epoch is infinite or not a number."""

    def __init__(self, phase: str, epoch: int):
        super().__init__(f"the loss, a test logit or a weight is not finite in {phase}, epoch {epoch}")
        self.phase, self.epoch = phase, epoch


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared Euclidean distance of the L2-normalised logits, summed over the batch (docs/method.md, section 3).

    student, teacher: (B, classes) -> scalar, in float32 whatever they come in.
    """
    difference = functional.normalize(student.float(), dim=1) - functional.normalize(teacher.float(), dim=1)
    return difference.square().sum()


@dataclass
class Curve:
    """What was measured in a phase, epoch by epoch (counted from 1).

    losses: mean over images, one an epoch. accuracies: test accuracy in percent by epoch, where measured.
    seconds: wall-clock spent in training and in evaluation. steps: of the optimiser. best_from: the first epoch that
    may be the best one.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: dict[int, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 0.0, "evaluation": 0.0})
    steps: int = 0
    best_from: int = 1

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Curve:
        """From a result or a checkpoint, in which epochs are strings; older ones lack the last two fields."""
        accuracies = {int(epoch): value for epoch, value in fields["accuracies"].items()}
        return cls(fields["losses"], accuracies, fields["seconds"], fields.get("steps", 0), fields.get("best_from", 1))

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.losses)

    @property
    def best_epoch(self) -> int:
        """The epoch of highest test accuracy from best_from on, the first one on ties."""
        candidates = [epoch for epoch in self.accuracies if epoch >= self.best_from]
        return max(candidates, key=lambda epoch: (self.accuracies[epoch], -epoch))


class Distillation:
    """A phase in progress: its scion, its optimiser, and what was measured.

    scion: replaces the blocks of the phase's span (grafting/scions.py). best: the scion's state on the CPU at the best
    epoch so far, where the phase selects one.
    """

    def __init__(self, phase: Phase, scion: nn.Sequential, shots: int):
        student, adapters = parameters_by_role(scion)
        lr_student, lr_adapter = phase.learning_rates(shots)
        self.phase = phase
        self.scion = scion
        self.batch = phase.batch(shots)
        self.optimizer = torch.optim.Adam(
            [{"params": student, "lr": lr_student}, {"params": adapters, "lr": lr_adapter}], fused=True
        )
        self.curve = Curve(best_from=phase.best_from)
        self.best: dict[str, Tensor] | None = None

    def run(
        self,
        inputs: Inputs,
        seed_key: tuple[int | str, ...],
        eval_every: int | None,
        after_epoch: Callable[[Distillation], None],
    ) -> None:
        """Train up to the phase's last epoch, after the epochs that are done already.

        The scion is in training mode while it is trained, but for BatchNorm that began with the teacher's statistics,
        and in evaluation mode while it is measured. seed_key: what the random draws depend on
        beside phase and epoch (utils/seeds.py). eval_every: epochs between test accuracies (Phase.measures).
        after_epoch: called after every epoch. Raises NotFinite.
        """
        device, step = inputs.teacher.device, self.step_on(inputs)
        norms = batchnorms_in(self.scion)
        count = self.phase.views_in_epoch(len(inputs))
        batches = batch_sizes(count, self.batch, joins_last=bool(norms))
        trains_norms = inputs.teacher.networks.trains_batchnorm
        while self.curve.epoch < self.phase.epochs:
            started = perf_counter()
            of_epoch = (*seed_key, self.phase.name, self.curve.epoch + 1)
            order, view = draw_views(inputs, count, *of_epoch)
            seed_layers(*of_epoch, "layers")
            self.scion.train()
            for norm in norms:
                norm.train(trains_norms)
            loss = train(step, order.to(device), view.to(device), batches)
            self.scion.eval()
            self.curve.steps += len(batches)
            self.record(loss, perf_counter() - started, inputs.teacher, eval_every)
            after_epoch(self)
        self.scion.eval()  # also where a checkpoint was of the last epoch
        if not all(parameter.isfinite().all() for parameter in self.scion.parameters()):
            raise NotFinite(self.phase.name, self.phase.epochs)  # after the last step, no loss would show it

    def record(self, loss: float, seconds: float, teacher: FrozenTeacher, eval_every: int | None) -> None:
        """An epoch is done: keep its loss, and where the phase asks for it, test accuracy and weights.

        seconds: of training. Raises NotFinite.
        """
        epoch = self.curve.epoch + 1
        self.curve.seconds["training"] += seconds
        if not math.isfinite(loss):
            raise NotFinite(self.phase.name, epoch)
        self.curve.losses.append(loss)
        if self.phase.measures(epoch, eval_every):
            started = perf_counter()
            network, start = self.scion_and_tail(teacher), self.phase.span[0]
            self.curve.accuracies[epoch] = student_accuracy(network, start, teacher, self.phase.name, epoch)
            self.curve.seconds["evaluation"] += perf_counter() - started
            if self.phase.selects(epoch) and self.curve.best_epoch == epoch:
                self.best = on_cpu(self.scion)

    def scion_and_tail(self, teacher: FrozenTeacher) -> nn.Sequential:
        """The scion and the teacher's blocks behind it: from the features in front of the scion to the logits."""
        return nn.Sequential(self.scion, teacher.blocks[self.phase.span[1] :])

    def step_on(self, inputs: Inputs) -> Step:
        """The training step, accelerated where the inputs allow it."""
        start, end = self.phase.span
        if self.phase.at_logits:
            network, compared_at = self.scion_and_tail(inputs.teacher), len(inputs.teacher.blocks)
        else:
            network, compared_at = self.scion, end
        fast = inputs.fast_network(network, start)
        return inputs.fast_step(partial(self._step, fast, compared_at, inputs), self.optimizer)

    def _step(self, network: nn.Module, compared_at: int, inputs: Inputs, image: Tensor, view: Tensor) -> Tensor:
        """One optimiser step on view[b] of image[b]; returns the batch's loss."""
        loss_of = self.phase.loss or distance
        features, targets = inputs.features_at_both(self.phase.span[0], compared_at, image, view)
        loss = loss_of(network(features), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def student_accuracy(network: nn.Module, start: int, teacher: FrozenTeacher, phase: str, epoch: int) -> float:
    """Test accuracy in percent of a student, from the features at `start`. phase, epoch: of NotFinite, if raised."""
    try:
        return teacher.accuracy(network, start)
    except LogitsNotFinite as error:  # its traceback would keep the features in memory
        raise NotFinite(phase, epoch) from error.with_traceback(None)


def train(step: Step, order: Tensor, view: Tensor, batches: list[int]) -> float:
    """One epoch over the images in `order`, each in its view; the mean loss per image. Waits for the device once.

    batches: the number of images in each.
    """
    total = torch.zeros((), device=order.device)
    for images, shown in zip(order.split(batches), view.split(batches), strict=True):
        total += step(images, shown)
    return total.item() / len(order)


def draw_views(inputs: Inputs, count: int, *seed_key: int | str) -> tuple[Tensor, Tensor]:
    """The images in random order, each equally often (count,), and a random view for each (count,)."""
    random = generator(*seed_key)
    order = random.permutation(np.arange(count) % len(inputs))
    return torch.from_numpy(order), torch.from_numpy(random.integers(inputs.views, size=count))
