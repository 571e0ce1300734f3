"""The data sets as uint8 arrays: the official CIFAR files, a folder of pictures, drawn shapes.

To add one, write a function that returns an `ImageDataset` and name it in `open_dataset`.
"""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from torchvision import datasets as torchvision_datasets

from data import shapes
from data.views import IMAGE_SIZE, Normalization
from utils.errors import BadInput

NAMES = ("CIFAR10", "CIFAR100", "Shapes10", "Folder")


@dataclass(frozen=True)
class LabelledImages:
    """images: (N, 3, 32, 32) uint8; labels: (N,) int64 in 0..classes-1."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ImageDataset:
    """A data set that is read only when asked: `train()` and `test()` return LabelledImages.

    subset_seed: the seed of the released few-shot subsets. published_subsets: whether the few-shot subsets are
    kept as files with the released names.
    """

    name: str
    classes: int
    normalization: Normalization
    subset_seed: int
    published_subsets: bool
    train: Callable[[], LabelledImages]
    test: Callable[[], LabelledImages]


def open_dataset(name: str, data_path: Path) -> ImageDataset:
    """The data set of that name. Raises BadInput when it cannot be had."""
    if name == "CIFAR10":
        normalization = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        return _cifar(torchvision_datasets.CIFAR10, 10, normalization, 6, data_path)
    if name == "CIFAR100":
        normalization = Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
        return _cifar(torchvision_datasets.CIFAR100, 100, normalization, 10, data_path)
    if name == "Shapes10":
        return _shapes10()
    if name == "Folder":
        return _folder(data_path)
    raise BadInput(f"--dataset {name}: not one of {', '.join(NAMES)}")


def _cifar(official: type, classes: int, normalization: Normalization, subset_seed: int, root: Path) -> ImageDataset:
    read = cache(partial(_read_cifar, official, root))
    return ImageDataset(
        official.__name__,
        classes,
        normalization,
        subset_seed,
        True,
        partial(read, True),
        partial(read, False),
    )


def _read_cifar(official: type, root: Path, train: bool) -> LabelledImages:
    """The official files through torchvision, which checks their md5 and fetches them when they are missing."""
    try:
        try:
            files = official(root, train=train)
        except RuntimeError:  # torchvision's word for a file that is missing or whose md5 differs
            files = official(root, train=train, download=True)
    except (OSError, RuntimeError, EOFError, urllib.error.URLError) as error:
        folder = root / official.base_folder
        state = "its md5 differs from the official one" if folder.exists() else "missing"
        raise BadInput(
            f"{folder}: {state}, and {official.url} cannot be had ({error}); put the official python files there"
        ) from error
    images = np.ascontiguousarray(files.data.transpose(0, 3, 1, 2))
    return LabelledImages(images, np.asarray(files.targets, np.int64))


def _shapes10() -> ImageDataset:
    @cache
    def read(split: str) -> LabelledImages:
        return LabelledImages(*shapes.draw(split))

    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return ImageDataset(
        "Shapes10",
        len(shapes.CLASSES),
        normalization,
        6,
        False,
        partial(read, "train"),
        partial(read, "test"),
    )


def _folder(root: Path) -> ImageDataset:
    """train/ and test/ under `root`, each with a folder of pictures per class; resized to 32x32.

    Normalised with the mean and standard deviation of the training images' pixels.
    """
    names = {split: _class_names(root / split) for split in ("train", "test")}
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise BadInput(f"{root}: class {odd[0]!r} is in only one of train/ and test/; both need the same folders")
    read = cache(partial(_read_folder, root))
    pixels = read("train").images.astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1) / 255
    normalization = Normalization(pixels.mean(1).tolist(), np.maximum(pixels.std(1), 1e-3).tolist())
    return ImageDataset(
        "Folder", len(names["train"]), normalization, 6, False, partial(read, "train"), partial(read, "test")
    )


def _class_names(split: Path) -> list[str]:
    if not split.is_dir():
        raise BadInput(f"{split}: no such directory; --dataset Folder needs train/ and test/ under --data_path")
    return sorted(entry.name for entry in split.iterdir() if entry.is_dir())


def _read_folder(root: Path, split: str) -> LabelledImages:
    try:
        pictures = torchvision_datasets.ImageFolder(str(root / split))
    except FileNotFoundError as error:  # names the class without a picture
        raise BadInput(f"{root / split}: {str(error).splitlines()[0]}") from error
    images = np.empty((len(pictures.samples), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i, (path, _) in enumerate(pictures.samples):
        try:
            picture = pictures.loader(path).resize((IMAGE_SIZE, IMAGE_SIZE))
        except OSError as error:
            raise BadInput(f"{path}: cannot be read as a picture ({error})") from error
        images[i] = np.asarray(picture).transpose(2, 0, 1)
    return LabelledImages(images, np.asarray(pictures.targets, np.int64))
