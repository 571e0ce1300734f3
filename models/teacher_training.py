"""Training a teacher, the only training that reads labels.

The training set is on the device as uint8 and is cropped and flipped there, so no time is lost in loading. A
checkpoint is written after every epoch; random numbers depend on the seed and the epoch only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from data.datasets import ImageDataset
from data.views import Views
from models import checkpoints, records
from models.architectures import Architecture
from models.balancing import balance
from models.networks import initialize
from models.teacher_recipe import TeacherRecipe
from models.training_layers import (
    LinearHead,
    PrototypeHead,
    TeacherWithTrainingLayers,
    fold_batchnorm,
    parameter_groups,
)
from models.vgg import BlockwiseVGG
from utils import files, machine
from utils.errors import BadInput
from utils.precision import arithmetic
from utils.progress import bar, brief_time
from utils.seeds import generator, torch_generator

TEST_BATCH = 500
AfterEpoch = Callable[[Sequence[Mapping[str, float]]], None]  # a callback: what was measured in each epoch so far
FEW_STEPS = 500  # of the optimiser, in all, for a new network; Shapes10's quick recipe takes 882


def batch_sizes(images: int, batch: int) -> list[int]:
    """An epoch's batches. A last single image, on which BatchNorm cannot train, is added to the batch before it."""
    sizes = [min(batch, images - start) for start in range(0, images, batch)]
    return sizes if len(sizes) == 1 or sizes[-1] > 1 else [*sizes[:-2], sizes[-2] + 1]


def train_teacher(
    dataset: ImageDataset,
    start: Architecture | Path,
    recipe: TeacherRecipe,
    seed: int,
    device: torch.device,
    path: Path,
    report: Callable[[str], None],
    fresh: bool = False,
    after_epoch: AfterEpoch = lambda epochs: None,
) -> float:
    """Train a teacher, write it to `path` in the released layout and its record beside it.

    start: the architecture of a new network, or the file of a teacher to continue with, which is left as it is.
    Returns its test accuracy in percent, measured in float32 on the network as written. An interrupted training
    continues after its last finished epoch. fresh: replace the teacher at `path`; without it, raises BadInput if there
    is one. after_epoch: called after every epoch with what was measured in each epoch so far. No other process may be
    training it.
    """
    if path.exists() and not fresh and not records.is_announced(path):
        raise BadInput(f"{path}: a teacher exists already; --fresh trains it again, another --teacher keeps both")
    if path.suffix != ".pth" or path.is_dir():
        raise BadInput(f"--teacher {path}: the name of a teacher's file ends in .pth; choose such a name")
    files.require_writable(path.parent)
    if isinstance(start, Path) and start.resolve() == path.resolve():
        raise BadInput(f"--teacher_from {start}: --teacher is the same file; name another one for the new teacher")
    resume_file = path.with_suffix(".resume.pt")
    for written in (path, records.path_of(path), resume_file):
        files.remove_leftovers(written)
    training = TeacherTraining(dataset, start, recipe, seed, device, resume_file, report, after_epoch)
    teacher = training.run()
    with arithmetic("float32", device):
        accuracy = training.test_accuracy(teacher)
    record = {
        "weights_sha256": checkpoints.weights_sha256(teacher),
        "test_accuracy": accuracy,
        **json.loads(training.setting),
        "epochs": training.history,
        "balanced_by": training.balanced_by,
        "bfloat16": machine.has_fast_bfloat16(device),
        "machine": machine.description(device),
    }
    records.announce(path, record)  # first: after an interruption, the same command goes on from here
    checkpoints.write_network(teacher, path)
    records.write(path, record)
    resume_file.unlink(missing_ok=True)
    return accuracy


class TeacherTraining:
    """A teacher's training. `run()` returns the trained teacher, in the plain layout.

    resume_file: a checkpoint, written after every epoch; training resumes from it if it exists. report: called with a
    message after every epoch. after_epoch: called after every epoch, and after resuming, with what was measured in each
    epoch so far.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        start: Architecture | Path,
        recipe: TeacherRecipe,
        seed: int,
        device: torch.device,
        resume_file: Path,
        report: Callable[[str], None],
        after_epoch: AfterEpoch = lambda epochs: None,
    ):
        self.dataset, self.recipe, self.seed, self.device = dataset, recipe, seed, device
        self.resume_file, self.report, self.after_epoch = resume_file, report, after_epoch
        self.views = Views(dataset.image_size)
        self.is_new = isinstance(start, Architecture)
        random = torch_generator(seed, "teacher")
        if isinstance(start, Path):
            network = checkpoints.read_teacher(start, dataset.classes)
            from_sha256 = checkpoints.weights_sha256(network)
        else:
            network = initialize(BlockwiseVGG(start, dataset.classes), random)
            from_sha256 = None
        heads: list[nn.Module] = []
        if recipe.linear_head:
            heads.append(LinearHead(network, recipe.linear_head, random))
        if recipe.prototype_head:
            heads.append(PrototypeHead(network, recipe.prototype_head))
        self.model = TeacherWithTrainingLayers(network, recipe.batchnorm, heads).to(
            device, memory_format=torch.channels_last
        )
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, recipe), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov
        )
        self.history: list[dict[str, float]] = []
        self.balanced_by: float | None = None
        self.setting = json.dumps(
            {
                "dataset": dataset.name,
                "seed": seed,
                "widths": network.architecture.widths,
                "teacher_from_sha256": from_sha256,
                "recipe": asdict(recipe),
                "train_sha256": dataset.train().sha256(),
                **records.deciding(dataset),
            }
        )

    def run(self) -> BlockwiseVGG:
        self._resume()
        train = self.dataset.train()
        if len(train.labels) < 2:
            raise BadInput(f"--dataset {self.dataset.name}: has a single training image; a teacher needs two or more")
        images = self.views.pad(torch.from_numpy(train.images)).to(self.device)  # (50000, 3, 40, 40) uint8
        labels = torch.from_numpy(train.labels).to(self.device)
        started, done, epochs = perf_counter(), len(self.history), self.recipe.epochs
        steps = len(batch_sizes(len(labels), self.recipe.batch))
        few = self.is_new and epochs * steps < FEW_STEPS
        advice = "; few for a new network: --teacher_epochs gives more" if few else ""
        self.report(
            f"training a teacher on the {len(labels):,} labelled training images of {self.dataset.name}: recipe"
            f" {self.recipe.name}, {epochs - done} epochs of {steps} steps{advice}"
        )
        with bar(desc="teacher", unit="step", total=epochs * steps, initial=done * steps) as steps_done:
            for epoch in range(done, self.recipe.epochs):
                figures = self._train(epoch, images, labels, steps_done)
                if not math.isfinite(figures["loss"]):
                    self._refuse(f"the loss is not finite in epoch {epoch + 1}")
                with self._autocast():
                    figures["test_accuracy"] = self.test_accuracy(self.model.network)
                self.history.append(figures)
                self._save()
                self.after_epoch(self.history)
                left = (perf_counter() - started) / (epoch + 1 - done) * (self.recipe.epochs - epoch - 1)
                self.report(
                    f"epoch {epoch + 1}/{self.recipe.epochs}: loss {figures['loss']:.4f}, training accuracy"
                    f" {figures['training_accuracy']:.2f}%, test accuracy {figures['test_accuracy']:.2f}%,"
                    f" {brief_time(left)} left"
                )
        teacher = fold_batchnorm(self.model.network).eval()
        if not all(value.isfinite().all() for value in teacher.state_dict().values()):  # after the last step
            self._refuse("a weight is not finite after the last epoch")
        if self.recipe.balanced:
            self.balanced_by = balance(teacher, self.dataset, self.device)
            self.report(
                f"balancing: block 2's output is multiplied by {self.balanced_by:g} and block 3's first weights are"
                " divided by it, so the logits stay the same"
            )
        return teacher

    def _refuse(self, fault: str) -> NoReturn:
        self.resume_file.unlink(missing_ok=True)  # it would refuse another seed
        raise BadInput(f"--train_teacher: {fault}; try another --seed, or a smaller --teacher_prototypes if given")

    def _train(self, epoch: int, images: Tensor, labels: Tensor, steps_done: tqdm) -> dict[str, float]:
        """One epoch over the training set in random order, each image in a random view."""
        random = generator(self.seed, "teacher", epoch)
        order = torch.from_numpy(random.permutation(len(labels))).to(self.device)
        view = torch.from_numpy(random.integers(self.views.count, size=len(labels))).to(self.device)
        self.model.train()
        loss_sum, correct = torch.zeros((2, 1), device=self.device)
        sizes, seen = batch_sizes(len(order), self.recipe.batch), 0
        for chosen, views in zip(order.split(sizes), view.split(sizes), strict=True):
            seen += len(chosen)
            rate = self.recipe.rate(epoch + seen / len(order))
            for group in self.optimizer.param_groups:
                group["lr"] = max(rate, 0.0)
            with self._autocast():
                pictures = self.dataset.normalization(self.views.crop(images, chosen, views))
                pictures = pictures.contiguous(memory_format=torch.channels_last)
                logits, loss_of_heads = self.model(pictures, labels[chosen])
                loss = functional.cross_entropy(logits, labels[chosen])
            self.optimizer.zero_grad()
            (loss + loss_of_heads).backward()
            self.optimizer.step()
            loss_sum += loss.detach() * len(chosen)
            correct += (logits.argmax(1) == labels[chosen]).sum()
            steps_done.update()
        return {
            "loss": loss_sum.item() / len(order),
            "training_accuracy": 100 * correct.item() / len(order),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    @torch.no_grad()
    def test_accuracy(self, network: nn.Module) -> float:
        """Percent of the test set that `network` classifies as labelled."""
        network.eval()
        test = self.dataset.test()
        correct = 0
        for start in range(0, len(test.labels), TEST_BATCH):
            images = torch.from_numpy(test.images[start : start + TEST_BATCH]).to(self.device)
            labels = torch.from_numpy(test.labels[start : start + TEST_BATCH]).to(self.device)
            logits = network(self.dataset.normalization(images).contiguous(memory_format=torch.channels_last))
            correct += (logits.argmax(1) == labels).sum()
        return 100 * int(correct) / len(test.labels)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=machine.has_fast_bfloat16(self.device))

    def _save(self) -> None:
        files.write_tensors(
            self.resume_file,
            {
                "setting": self.setting,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "history": json.dumps(self.history),
            },
        )

    def _resume(self) -> None:
        if not self.resume_file.exists():
            return
        kind = "the checkpoint of an unfinished teacher training; remove it to start again"
        saved = files.read_tensors(self.resume_file, kind)
        with files.reading(self.resume_file, kind):
            if saved["setting"] != self.setting:
                raise BadInput(
                    f"{self.resume_file}: an unfinished teacher training with other settings; use those settings,"
                    " remove the file, or name another --teacher"
                )
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.history = json.loads(saved["history"])
        self.report(f"{self.resume_file}: resuming after epoch {len(self.history)}")
        self.after_epoch(self.history)
