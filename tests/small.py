"""Small things to test with: a narrow teacher, random pictures, a short schedule."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import ImageDataset, LabelledImages
from data.views import Normalization
from experiments.cell import Cell
from experiments.planned_cell import PlannedCell
from experiments.setting import Setting
from grafting.method import GRAFTING
from grafting.recipes import CIFAR10, Recipe
from models.vgg import Architecture, BlockwiseVGG, frozen, initialize

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


def small_dataset() -> ImageDataset:
    """Three classes of random pictures, 12 for training and 20 for testing."""
    train = LabelledImages(pictures(12, 1), np.arange(12) % CLASSES)
    test = LabelledImages(pictures(20, 2), np.arange(20) % CLASSES)
    normalization = Normalization((0.5, 0.4, 0.6), (0.2, 0.25, 0.3))
    return ImageDataset("Tiny", CLASSES, normalization, 6, False, lambda: train, lambda: test, lambda: ("a", "b", "c"))


def short_recipe(stage1: tuple[int, int, int] = (3, 2, 2), stage2: tuple[int, int] = (2, 4)) -> Recipe:
    """CIFAR10's recipe with these few epochs, and no published results."""

    def shortened(phases, epochs):
        return tuple(
            replace(phase, epochs=e, selects_among=min(phase.selects_among, e))
            for phase, e in zip(phases, epochs, strict=True)
        )

    return replace(
        CIFAR10, stage1=shortened(CIFAR10.stage1, stage1), stage2=shortened(CIFAR10.stage2, stage2), published={}
    )


class PowerCut(BaseException):
    pass


def run_in_pieces(make: Callable[..., Cell], epochs: int) -> Cell:
    """Run a cell that is cut after each of its epochs; every time, one more epoch has been done. Returns the last.

    make: makes it, with these arguments of Cell. Checkpoints must follow each epoch; a cut comes before its own.
    """
    for done in range(epochs + 1):
        trained: dict[str, int] = {}

        def cut(phase, curve, done=done, trained=trained):
            trained[phase] = curve.epoch
            if sum(trained.values()) > done:
                raise PowerCut

        cell = make(after_epoch=cut)
        if done < epochs:
            with pytest.raises(PowerCut):
                cell.run()
    cell.run()
    return cell


def small_cell(teacher, images, recipe, folder: Path, shots: int, trial: int = 0, **changed) -> Cell:
    """A cell on few-shot images whose files are in `folder`. changed: fields of its Setting, or arguments of Cell."""
    setting = {
        "seed": 0, "subset_seed": 6, "precision": "tf32", "teacher_sha256": "t", "subset_sha256": "s",
        "test_sha256": "e", "normalization": teacher.normalization.content, "recipe": recipe, "method": GRAFTING,
    }  # fmt: skip
    arguments = {"eval_every": 2, "process": {"command": "one"}, "after_epoch": lambda phase, curve: None}
    setting |= {name: value for name, value in changed.items() if name in setting}
    arguments |= {name: value for name, value in changed.items() if name in arguments}
    students = {kind: folder / f"{kind}.pth" for kind in ("stage 1", "best", "last")}
    record = {"class_names": list("abc")}
    planned = PlannedCell(Setting("Tiny", shots, trial, **setting), images, folder / "cell.json", students, record)
    return Cell(planned, teacher, teacher.few_shot(images), **arguments)
