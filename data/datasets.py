"""The data sets as uint8 arrays: the official CIFAR files, a folder of pictures, synthetic shapes.

To add one, write a function that returns an `ImageDataset`, name it in `open_dataset`, and give it a recipe in
grafting/recipes.py.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import download_and_extract_archive

from data import folder, shapes
from data.pictures import mean_and_std
from data.views import CIFAR_SIZE, Normalization, Views
from utils import locks
from utils.errors import BadInput
from utils.text import in_one_line, say


@dataclass(frozen=True)
class LabelledImages:
    """images: (N, 3, side, side) uint8; labels: (N,) int64 in 0..classes-1."""

    images: np.ndarray
    labels: np.ndarray

    def sha256(self) -> str:
        """Of the images' bytes, then the labels' (int64, little endian)."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels, "<i8"))
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageDataset:
    """A data set. `train()` and `test()` return LabelledImages, which are read at the first call; a Folder's when it is
    opened, for its normalisation, and so that every fault is known.

    subset_seed: the seed of the released few-shot subsets. published_subsets: whether the few-shot subsets are stored
    as files with the released names. class_names(): the name of each class, in the labels' order. image_size: pixels on
    each side of a test image and of a view of a training image (data/views.py).
    """

    name: str
    classes: int
    normalization: Normalization
    subset_seed: int
    published_subsets: bool
    train: Callable[[], LabelledImages]
    test: Callable[[], LabelledImages]
    class_names: Callable[[], tuple[str, ...]]
    image_size: int = CIFAR_SIZE


def dataset_name(name: str, data_path: Path) -> str:
    """The data set's name in files and results. For Folder, the directory's name is added: "Folder-my_pictures".

    Raises BadInput for a directory whose name is not valid text.
    """
    directory = Path(os.path.realpath(data_path)).name if name == "Folder" else ""  # empty for the root directory
    if directory != in_one_line(directory):  # TensorBoard and file names need it
        raise BadInput(f"--data_path {in_one_line(directory)}: the folder's name is not valid text; rename it")
    return f"{name}-{directory}" if directory else name


CIFARS = {  # torchvision's class, classes, normalisation, seed of the released few-shot subsets
    "CIFAR10": (CIFAR10, 10, Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), 6),
    "CIFAR100": (CIFAR100, 100, Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)), 10),
}


def open_dataset(
    name: str, data_path: Path, image_size: int = CIFAR_SIZE, report: Callable[[str], None] = say
) -> ImageDataset:
    """The data set of that name. Raises BadInput if it is not available.

    image_size: of Folder's pictures; the images of the other data sets have 32 pixels on each side. report: called with
    what a Folder holds, and what of it is not used.
    """
    if name in CIFARS:
        return _cifar(*CIFARS[name], data_path)
    return _shapes10() if name == "Shapes10" else _folder(data_path, image_size, report)


def _cifar(official: type, classes: int, normalization: Normalization, subset_seed: int, root: Path) -> ImageDataset:
    @cache
    def read(train: bool) -> LabelledImages:
        found = _official(official, root, train)
        images = np.ascontiguousarray(found.data.transpose(0, 3, 1, 2))
        return LabelledImages(images, np.asarray(found.targets, np.int64))

    names = cache(lambda: tuple(_official(official, root, False).classes))
    splits = partial(read, True), partial(read, False)
    return ImageDataset(official.__name__, classes, normalization, subset_seed, True, *splits, names)


def _official(official: type, root: Path, train: bool) -> CIFAR10:
    """The official files through torchvision, which checks their md5 and downloads them when they are missing."""
    try:
        with suppress(RuntimeError):  # raised for a file that is missing or whose md5 differs
            return official(root, train=train)
        if (root / "train").is_dir() and (root / "test").is_dir():
            raise BadInput(f"--data_path {root}: holds train/ and test/, not {official.__name__}; add --dataset Folder")
        root.mkdir(parents=True, exist_ok=True)
        with locks.hold(root / f".{official.filename}.lock", timeout=-1):
            with suppress(RuntimeError):  # another process may have just downloaded them
                return official(root, train=train)
            download_and_extract_archive(official.url, root, filename=official.filename, md5=official.tgz_md5)
            return official(root, train=train)
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        folder = root / official.base_folder
        state = "incomplete, or its md5 differs from the official one" if folder.exists() else "missing"
        raise BadInput(
            f"{folder}: {state}, and {official.url} cannot be downloaded ({error}); put the official python files there"
        ) from error


def _shapes10() -> ImageDataset:
    read = cache(lambda split: LabelledImages(*shapes.draw(split)))
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    splits = partial(read, "train"), partial(read, "test")
    return ImageDataset("Shapes10", len(shapes.CLASSES), normalization, 6, False, *splits, lambda: shapes.CLASSES)


def _folder(root: Path, image_size: int, report: Callable[[str], None]) -> ImageDataset:
    """Training images are stored with what their views need around them (data/views.py). Normalised with the mean and
    standard deviation of the training images' pixels.
    """
    name, (class_names, splits, skipped) = dataset_name("Folder", root), folder.find(root)
    train, test = (len(splits[split].labels) for split in ("train", "test"))
    report(f"{name}: {len(class_names)} classes, {train:,} training and {test:,} test images")
    if skipped:
        report(skipped)
    faults: list[str] = []
    sides = {"train": Views(image_size).stored, "test": image_size}
    images = {split: folder.read(splits[split], image_size, side, faults) for split, side in sides.items()}
    folder.refuse(faults)
    mean, std = mean_and_std(images["train"])
    normalization = Normalization(mean, np.maximum(std, 1e-3).tolist())
    read = [LabelledImages(images[split], splits[split].labels) for split in sides]
    parts = normalization, 6, False, lambda: read[0], lambda: read[1], lambda: class_names, image_size
    return ImageDataset(name, len(class_names), *parts)
