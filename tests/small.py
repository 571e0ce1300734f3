"""Small things to test with: a narrow teacher, random pictures, a short schedule."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train_fskd
from data.datasets import ImageDataset, LabelledImages
from data.decoding import Pictures
from data.views import Normalization
from experiments.cell import Cell
from experiments.job import Job
from experiments.training import CellTraining
from grafting.recipes import CIFAR10, Recipe
from grafting.teacher import FrozenTeacher
from models.architectures import Architecture
from models.networks import NETWORKS, frozen, initialize, vgg
from models.vgg import BlockwiseVGG

TINY = Architecture(((4,), (4,), (8,), (8, 8), (8,)), hidden=8)
CLASSES = 3


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def pixel(*_) -> bytes:
    """A picture of one pixel, to stand in for the figure, which takes longer to draw than a small cell to run."""
    with io.BytesIO() as written:
        Image.new("RGB", (1, 1)).save(written, "png")
        return written.getvalue()


def pixels(*_) -> np.ndarray:
    """The same for a picture of TensorBoard."""
    return np.zeros((1, 1, 3), np.uint8)


def weights(path: Path) -> dict[str, bytes]:
    """The bytes of every tensor in a checkpoint. (The bytes of the file itself also hold memory addresses.)"""
    content = torch.load(path, weights_only=True)
    states = content if "block-0" in content else {"": content}
    return {f"{name} {key}": value.numpy().tobytes() for name, state in states.items() for key, value in state.items()}


def numbers(output_dir: Path) -> tuple[dict, dict]:
    """Every figure of a finished run, by file, and every weight of its students; no times, no paths."""
    figures = {}
    for path in sorted(output_dir.glob("results/*/*.json")):
        content = json.loads(path.read_text())
        phases = {name: (phase["losses"], phase["accuracies"]) for name, phase in content["phases"].items()}
        figures[f"{path.parent.name}/{path.name}"] = (content["best"], content["best_epoch"], content["last"], phases)
    return figures, {path.name: weights(path) for path in sorted(output_dir.glob("student/*.pth"))}


def small_teacher() -> BlockwiseVGG:
    """A frozen narrow teacher whose BatchNorm has statistics."""
    random = torch.Generator().manual_seed(1)
    network = initialize(BlockwiseVGG(TINY, CLASSES), random)
    with torch.no_grad():
        for linear in (network.classifier[0], network.classifier[2]):
            linear.weight.mul_(100)  # logits well apart from 0
        network.train()
        network(torch.randn(64, 3, 32, 32, generator=random))
    return frozen(network)


def overflowing(network: nn.Module) -> nn.Module:
    """The network with weights that are finite and logits that are not."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(1e30)
    return network


def small_dataset() -> ImageDataset:
    """Three classes of random pictures, 12 for training and 20 for testing."""
    train = LabelledImages(pictures(12, 1), np.arange(12) % CLASSES)
    test = LabelledImages(pictures(20, 2), np.arange(20) % CLASSES)
    normalization = Normalization((0.5, 0.4, 0.6), (0.2, 0.25, 0.3))
    return ImageDataset("Tiny", CLASSES, normalization, 6, False, lambda: train, lambda: test, lambda: ("a", "b", "c"))


class NotInMemory(Pictures):
    """As Pictures are for which there is no room."""

    decoded = property(lambda self: self)


def dataset_not_in_memory() -> ImageDataset:
    """The same images."""
    dataset = small_dataset()
    train, test = (
        LabelledImages(NotInMemory(split.images.transpose(0, 2, 3, 1), "pictures", 32, 32), split.labels)
        for split in (dataset.train(), dataset.test())
    )
    return replace(dataset, train=lambda: train, test=lambda: test)


def frozen_teacher(network: BlockwiseVGG | None = None, dataset: ImageDataset | None = None) -> FrozenTeacher:
    """The small teacher with the small data set, or others."""
    network = network or small_teacher()
    return FrozenTeacher(network, vgg(network.architecture), dataset or small_dataset())


def resnet_teacher(name: str, *grafted: int) -> FrozenTeacher:
    networks = NETWORKS[name].grafted_at(*grafted) if grafted else NETWORKS[name]
    return FrozenTeacher(with_statistics(networks.teacher(CLASSES)), networks, small_dataset())


def with_statistics(network: nn.Module) -> nn.Module:
    """With random weights, and BatchNorm's statistics of some images."""
    random = torch.Generator().manual_seed(1)
    initialize(network, random).train()(torch.randn(16, 3, 32, 32, generator=random))
    return network


def short_recipe(stage1: tuple[int, ...] = (3, 2), stage2: tuple[int, ...] = (2, 4)) -> Recipe:
    """CIFAR10's recipe with these few epochs, and no published results."""
    return replace(CIFAR10, stage1_epochs=stage1, stage2_epochs=stage2, published={})


def small_job(
    folder: Path,
    *flags: str,
    dataset: ImageDataset | None = None,
    recipe: Recipe | None = None,
    network: BlockwiseVGG | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Job:
    """A job whose files are in `folder`, on the small data set with the short recipe. flags: of train_fskd.py."""
    words = ["--dataset", "Folder", "--output_dir", str(folder), "--teacher", "teacher.pth", "--device", "cpu"]
    job = Job(train_fskd.arguments([*words, *flags]), report=report)
    job.dataset, job.network = dataset or small_dataset(), network or small_teacher()
    job.data_recipe = recipe or short_recipe()
    return job


class PowerCut(BaseException):
    pass


def run_in_pieces(make: Callable[..., CellTraining], epochs: int) -> CellTraining:
    """Run a training that is cut after each of its epochs; every time, one more epoch has been done. Returns the last.

    make: makes it, with `after_epoch`. Checkpoints must follow each epoch; a cut comes before its own.
    """
    for done in range(epochs + 1):
        trained: dict[str, int] = {}

        def cut(phase, curve, done=done, trained=trained):
            trained[phase] = curve.epoch
            if sum(trained.values()) > done:
                raise PowerCut

        training = make(after_epoch=cut)
        if done < epochs:
            with pytest.raises(PowerCut):
                training.run()
    training.run()
    return training


def small_training(
    job: Job, teacher: FrozenTeacher, images: np.ndarray, shots: int, trial: int = 0, after_epoch=lambda *_: None
) -> CellTraining:
    """The training of a cell of the job on these few-shot images."""
    job._subsets[shots, job.subset_seed] = images
    return CellTraining(Cell(job, shots, trial), teacher, {"command": "one"}, after_epoch)
