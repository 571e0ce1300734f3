"""The data sets as uint8 arrays: the official CIFAR files, a folder of pictures, synthetic shapes.

To add one, write a function that returns an `ImageDataset`, name it in `open_dataset`, and give it a recipe in
grafting/recipes.py.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path

import filelock
import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS, is_image_file
from torchvision.datasets.utils import download_and_extract_archive

from data import shapes
from data.pictures import class_folders, find_files, from_picture, mean_and_std
from data.views import CIFAR_SIZE, Normalization, Views
from utils.errors import BadInput
from utils.text import in_one_line

NAMED_FAULTS = 10  # pictures that cannot be read, in one message


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
    """A data set. `train()` and `test()` return LabelledImages, which are read at the first call; a Folder's training
    images when it is opened, for its normalisation.

    subset_seed: the seed of the released few-shot subsets. published_subsets: whether the few-shot subsets are stored
    as files with the released names. class_names(): the name of each class, in the labels' order. skipped: which files
    are no pictures, for the user; empty if there are none. image_size: pixels on each side of a test image and of a
    view of a training image (data/views.py).
    """

    name: str
    classes: int
    normalization: Normalization
    subset_seed: int
    published_subsets: bool
    train: Callable[[], LabelledImages]
    test: Callable[[], LabelledImages]
    class_names: Callable[[], tuple[str, ...]]
    skipped: str = ""
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


def open_dataset(name: str, data_path: Path, image_size: int = CIFAR_SIZE) -> ImageDataset:
    """The data set of that name. Raises BadInput if it is not available.

    image_size: of Folder's pictures; the images of the other data sets have 32 pixels on each side.
    """
    if name in CIFARS:
        return _cifar(*CIFARS[name], data_path)
    return _shapes10() if name == "Shapes10" else _folder(data_path, image_size)


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
        with filelock.FileLock(root / f".{official.filename}.lock"):
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


def _folder(root: Path, image_size: int) -> ImageDataset:
    """train/ and test/ under `root`, each with a folder of pictures per class, as `from_picture` reads them.

    Training images are stored with what their views need around them (data/views.py). Normalised with the mean and
    standard deviation of the training images' pixels.
    """
    names, sides = _class_names(root), {"train": Views(image_size).stored, "test": image_size}
    read = cache(lambda split: _read_folder(root / split, names, image_size, sides[split]))
    mean, std = mean_and_std(read("train").images)
    normalization = Normalization(mean, np.maximum(std, 1e-3).tolist())
    splits = partial(read, "train"), partial(read, "test")
    name, skipped = dataset_name("Folder", root), _skipped(root)
    return ImageDataset(name, len(names), normalization, 6, False, *splits, lambda: names, skipped, image_size)


def _skipped(root: Path) -> str:
    """The files in train/ and test/ that are not read: how many, with which extensions."""
    others = [path for split in ("train", "test") for path in find_files(root / split) if not is_image_file(path.name)]
    counts = Counter(path.suffix.lower() or "no extension" for path in others)
    listed = ", ".join(f"{count} {extension}" for extension, count in sorted(counts.items()))
    return f"skipped, since they do not end in {', '.join(IMG_EXTENSIONS)}: {listed}" if others else ""


def _class_names(root: Path) -> tuple[str, ...]:
    """The names of the folders in train/. Raises BadInput unless test/ has the same ones."""
    for split in (root / "train", root / "test"):
        if not split.is_dir():
            raise BadInput(f"{split}: no such directory; --dataset Folder needs train/ and test/ under --data_path")
    names, others = class_folders(root / "train"), class_folders(root / "test")
    if names != others:
        unmatched = min(set(names) ^ set(others))
        raise BadInput(f"{root}: class {unmatched!r} is in only one of train/ and test/; both need the same folders")
    if len(names) < 2:
        raise BadInput(f"{root / 'train'}: needs a folder of pictures for each of two or more classes")
    return tuple(names)


def _read_folder(split: Path, names: tuple[str, ...], image_size: int, side: int) -> LabelledImages:
    paths, labels = [], []
    for label, name in enumerate(names):
        found = [path for path in find_files(split / name) if is_image_file(path.name)]
        if not found:
            raise BadInput(f"{split / name}: no picture in it; each class needs one of {', '.join(IMG_EXTENSIONS)}")
        paths += found
        labels += [label] * len(found)
    images, faults = np.empty((len(paths), 3, side, side), np.uint8), []
    for image, path in zip(images, paths, strict=True):
        try:
            image[:] = from_picture(path, path, image_size, side)
        except BadInput as fault:
            faults.append(str(fault))
    if faults:
        more = f"; and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise BadInput("; ".join(faults[:NAMED_FAULTS]) + more)
    return LabelledImages(images, np.asarray(labels, np.int64))
