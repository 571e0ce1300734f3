"""Training a teacher, the only training that reads labels.

The training set is on the device as uint8, if it fits into memory, and is cropped and flipped there, so no time is lost
in loading. A checkpoint is written after every epoch; random numbers depend on the seed and the epoch only.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from data.datasets import ImageDataset
from data.decoding import Pictures
from data.views import TEST_BATCH, Views, images_at_once
from models import checkpoints, records
from models.balancing import balance
from models.networks import Networks, batch_sizes, initialize, seeded
from models.teacher_recipe import TeacherRecipe
from models.training_layers import TeacherWithTrainingLayers, fold_batchnorm, parameter_groups
from utils import files, machine
from utils.errors import BadInput
from utils.precision import arithmetic
from utils.seeds import generator, seed_layers, torch_generator
from utils.text import bar, brief_time

Report = Callable[[str], None]
AfterEpoch = Callable[[Sequence[Mapping[str, float]]], None]  # a callback: what was measured in each epoch so far


class TrainingImages:
    """Training images (N, 3, stored, stored) uint8 in their views: on the device, or read for each step."""

    def __init__(self, images: np.ndarray | Pictures, views: Views, device: torch.device):
        self.images, self.views, self.device = images, views, device
        self.padded = None if isinstance(images, Pictures) else views.pad(torch.from_numpy(images)).to(device)

    def shown(self, image: Tensor, view: Tensor) -> Tensor:
        """View view[b] of image[b]: (B, 3, size, size) uint8."""
        if self.padded is not None:
            return self.views.crop(self.padded, image, view)
        read = self.views.pad(torch.from_numpy(self.images[image.numpy(force=True)])).to(self.device)
        return self.views.crop(read, torch.arange(len(view), device=self.device), view)


class TeacherTraining:
    """A teacher's training, which `run()` runs from its checkpoint, if it was interrupted, to its record.

    networks: of which the teacher is trained. start: the file of a teacher to continue with, which is left as it is;
    None: a new network. path: the new teacher's file, *.pth, in a folder that exists; no other process may be training
    it.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        networks: Networks,
        start: Path | None,
        recipe: TeacherRecipe,
        seed: int,
        device: torch.device,
        path: Path,
    ):
        self.dataset, self.recipe, self.seed, self.device, self.path = dataset, recipe, seed, device, path
        self.resume_file = path.with_suffix(".resume.pt")
        self.views = Views(dataset.image_size)
        self.train, self.test = dataset.decoded()
        self.history: list[dict[str, float]] = []
        random = torch_generator(seed, "teacher")
        self.is_new = start is None
        if start:
            network = checkpoints.read_teacher(start, dataset.classes, networks)
        else:
            with seeded(random):
                network = networks.teacher(dataset.classes)
            initialize(network, random)
        setting = {
            "dataset": dataset.name,
            "seed": seed,
            **networks.of(network).content,
            "teacher_from_sha256": None if self.is_new else checkpoints.weights_sha256(network),
            "recipe": recipe.content,
            "train_sha256": self.train.sha256(),
            **records.deciding(dataset),
        }
        self.setting = json.dumps(setting)
        model = TeacherWithTrainingLayers(network, recipe, random, self.views.size)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, recipe), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov
        )

    def run(self, report: Report, after_epoch: AfterEpoch = lambda epochs: None) -> float:
        """Train, and write the teacher in the released layout and its record beside it.

        Returns the test accuracy in percent, measured in float32 on the network as written. report: called with a
        message after every epoch. after_epoch: called after every epoch, and after resuming.
        """
        for written in (self.path, records.path_of(self.path), self.resume_file):
            files.remove_leftovers(written)
        self._resume(report, after_epoch)
        self._train(report, after_epoch)
        teacher, balanced_by = self.model.network.eval(), None
        if self.recipe.batchnorm:
            teacher = fold_batchnorm(teacher)
        if not all(value.isfinite().all() for value in teacher.state_dict().values()):  # after the last step
            self._refuse("a weight is not finite after the last epoch")
        if self.recipe.balanced:
            balanced_by = balance(teacher, self.dataset, self.device)
            report(
                f"balancing: block 2's output is multiplied by {balanced_by:g} and block 3's first weights are divided"
                " by it, so the logits stay the same"
            )
        with arithmetic("float32", self.device):
            accuracy = self._test_accuracy(teacher)
        record = {
            "weights_sha256": checkpoints.weights_sha256(teacher),
            "test_accuracy": accuracy,
            **json.loads(self.setting),
            "epochs": self.history,
            "balanced_by": balanced_by,
            "bfloat16": machine.has_fast_bfloat16(self.device),
            "machine": machine.description(self.device),
        }
        records.announce(self.path, record)  # first: after an interruption, the same command goes on from here
        checkpoints.write_network(teacher, self.path)
        records.write(self.path, record)
        self.resume_file.unlink(missing_ok=True)
        return accuracy

    def _train(self, report: Report, after_epoch: AfterEpoch) -> None:
        """The epochs that are not done yet."""
        if len(self.train.labels) < 2:
            raise BadInput(f"--dataset {self.dataset.name}: has a single training image; a teacher needs two or more")
        images = TrainingImages(self.train.images, self.views, self.device)
        labels = torch.from_numpy(self.train.labels).to(self.device)
        started, done, epochs = perf_counter(), len(self.history), self.recipe.epochs
        steps = len(batch_sizes(self.recipe.passes * len(labels), self.recipe.batch, True))
        passes = f", each image {self.recipe.passes} times in an epoch" if self.recipe.passes > 1 else ""
        report(
            f"training a teacher on the {len(labels):,} labelled training images of {self.dataset.name}: recipe"
            f" {self.recipe.name}, {epochs - done} epochs of {steps} steps{passes}"
        )
        with bar(desc="teacher", unit="step", total=epochs * steps, initial=done * steps) as steps_done:
            for epoch in range(done, epochs):
                figures = self._train_epoch(epoch, images, labels, steps_done)
                if not math.isfinite(figures["loss"]):
                    self._refuse(f"the loss is not finite in epoch {epoch + 1}")
                with self._autocast():
                    figures["test_accuracy"] = self._test_accuracy(self.model.network)
                self.history.append(figures)
                self._save()
                after_epoch(self.history)
                left = (perf_counter() - started) / (epoch + 1 - done) * (epochs - epoch - 1)
                report(
                    f"epoch {epoch + 1}/{epochs}: loss {figures['loss']:.4f}, training accuracy"
                    f" {figures['training_accuracy']:.2f}%, test accuracy {figures['test_accuracy']:.2f}%,"
                    f" {brief_time(left)} left"
                )

    def _refuse(self, fault: str) -> NoReturn:
        self.resume_file.unlink(missing_ok=True)  # it would refuse another seed
        another = "--seed" if self.is_new else "--seed or --teacher_from"
        raise BadInput(f"--train_teacher: {fault}; try another {another}, or a smaller --teacher_prototypes if given")

    def _train_epoch(self, epoch: int, images: TrainingImages, labels: Tensor, steps_done: tqdm) -> dict[str, float]:
        """One epoch: the recipe's passes over the training set in random order, each image in a random view."""
        random = generator(self.seed, "teacher", epoch)
        passes = [random.permutation(len(labels)) for _ in range(self.recipe.passes)]
        order = torch.from_numpy(np.concatenate(passes)).to(self.device)
        view = torch.from_numpy(random.integers(self.views.count, size=len(order))).to(self.device)
        self.model.train()
        seed_layers(self.seed, "teacher", epoch, "layers")
        loss_sum, correct = torch.zeros((2, 1), device=self.device)
        sizes, seen = batch_sizes(len(order), self.recipe.batch, True), 0
        for chosen, views in zip(order.split(sizes), view.split(sizes), strict=True):
            seen += len(chosen)
            learning_rate = max(self.recipe.rate(epoch + seen / len(order)), 0.0)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            with self._autocast():
                batch = self.dataset.normalization(images.shown(chosen, views))
                logits, loss_of_heads = self.model(batch.contiguous(memory_format=torch.channels_last), labels[chosen])
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
            "learning_rate": learning_rate,
        }

    @torch.no_grad()
    def _test_accuracy(self, network: nn.Module) -> float:
        """Percent of the test set that `network` classifies as labelled. Raises BadInput if a logit is not finite."""
        network.eval()
        correct = 0
        for images, labels in self.test.batches(images_at_once(TEST_BATCH, self.views.size)):
            normalized = self.dataset.normalization(images.to(self.device))
            logits = network(normalized.contiguous(memory_format=torch.channels_last))
            if not logits.isfinite().all():
                self._refuse("a test logit is not finite")
            correct += (logits.argmax(1) == labels.to(self.device)).sum()
        return 100 * int(correct) / len(self.test.labels)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=machine.has_fast_bfloat16(self.device))

    def _save(self) -> None:
        content = {"setting": self.setting, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        files.write_tensors(self.resume_file, {**content, "history": json.dumps(self.history)})

    def _resume(self, report: Report, after_epoch: AfterEpoch) -> None:
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
        report(f"{self.resume_file}: resuming after epoch {len(self.history)}")
        after_epoch(self.history)
