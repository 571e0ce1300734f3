"""The data sets as uint8 arrays: the official CIFAR files, a folder of pictures, synthetic shapes.

To add one, write a function that returns an `ImageDataset`, name it in `open_dataset`, and give it a recipe in
grafting/recipes.py.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import download_and_extract_archive

from data import folder, shapes
from data.decoding import BATCH, Pictures
from data.pictures import mean_and_std
from data.views import CIFAR_SIZE, Normalization, Views
from utils import locks
from utils.errors import BadInput
from utils.text import in_one_line, say


@dataclass(frozen=True)
class LabelledImages:
    """images: (N, 3, side, side) uint8, in memory or as Pictures; labels: (N,) int64 in 0..classes-1.

    Of the images, only len(), shape, slices and indexing by numbers are used: they may not fit into memory.
    """

    images: np.ndarray | Pictures
    labels: np.ndarray

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels), `size` at a time."""
        for start in range(0, len(self.labels), size):
            part = slice(start, start + size)
            yield torch.from_numpy(self.images[part]), torch.from_numpy(self.labels[part])

    def decoded(self) -> "LabelledImages":
        """The same, for more than one use of all: Pictures are decoded once (data/decoding.py)."""
        images = self.images.decoded if isinstance(self.images, Pictures) else self.images
        return LabelledImages(images, self.labels)

    def sha256(self) -> str:
        """Of the images' bytes, then the labels' (int64, little endian)."""
        digest = hashlib.sha256()
        for start in range(0, len(self.images), BATCH):
            digest.update(np.ascontiguousarray(self.images[start : start + BATCH]))
        digest.update(np.ascontiguousarray(self.labels, "<i8"))
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageDataset:
    """A data set. `train()` and `test()` return LabelledImages, which are read at the first call.

    subset_seed: the seed of the released few-shot subsets. published_subsets: whether the few-shot subsets are stored
    as files with the released names. class_names(): the name of each class, in the labels' order. image_size: pixels on
    each side of a test image and of a view of a training image (data/views.py). train(): pictures are not decoded yet,
    since distillation needs few of them; test(): they are.
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

    def decoded(self) -> tuple[LabelledImages, LabelledImages]:
        """All training and all test images. Raises BadInput that names what is wrong with either."""
        found, faults = [], []
        for split in (self.train, self.test):
            try:
                found.append(split().decoded())
            except BadInput as fault:
                faults.append(str(fault))
        if faults:
            raise BadInput("; ".join(faults))
        return found[0], found[1]


def dataset_name(name: str, data_path: Path) -> str:
    """The data set's name in files and results. For Folder, the directory's name is added: "Folder-my_pictures".

    Raises BadInput for a directory whose name is not valid text.
    """
    directory = Path(os.path.realpath(data_path)).name if name == "Folder" else ""  # empty for the root directory
    if directory != in_one_line(directory):  # TensorBoard and file names need it
        raise BadInput(f"--data_path {in_one_line(directory)}: the folder's name is not valid text; rename it")
    return f"{name}-{directory}" if directory else name


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's
CIFARS = {  # torchvision's class, classes, normalisation, seed of the released few-shot subsets
    "CIFAR10": (CIFAR10, 10, Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), 6),
    "CIFAR100": (CIFAR100, 100, Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)), 10),
}


def open_dataset(
    name: str, data_path: Path, image_size: int = CIFAR_SIZE, report: Callable[[str], None] = say
) -> ImageDataset:
    """The data set of that name. Raises BadInput if it is not available.

    image_size: of its images. At another one than 32, those of all data sets are resized and cropped as pictures are
    (data/pictures.py), and no few-shot subset is read or written. report: called with each line for the user.
    """
    if name in CIFARS:
        dataset = _cifar(*CIFARS[name], data_path)
    elif name == "Shapes10":
        dataset = _shapes10()
    else:
        return _folder(data_path, image_size, report)
    return dataset if image_size == CIFAR_SIZE else _resized(dataset, image_size)


def _resized(dataset: ImageDataset, image_size: int) -> ImageDataset:
    """The data set with its images of 32x32 at another size: training images as stored for their views."""

    @cache
    def read(split: str, side: int) -> LabelledImages:
        of_32 = dataset.train() if split == "train" else dataset.test()
        name = f"{split} images of {dataset.name}"
        return LabelledImages(Pictures(of_32.images.transpose(0, 2, 3, 1), name, image_size, side), of_32.labels)

    return replace(
        dataset,
        published_subsets=False,
        train=lambda: read("train", Views(image_size).stored),
        test=lambda: read("test", image_size).decoded(),
        image_size=image_size,
    )


def _cifar(official: type, classes: int, normalization: Normalization, subset_seed: int, root: Path) -> ImageDataset:
    @cache  # each reading takes the md5 of all files
    def read(train: bool) -> tuple[LabelledImages, tuple[str, ...]]:
        found = _official(official, root, train)
        images = np.ascontiguousarray(found.data.transpose(0, 3, 1, 2))
        return LabelledImages(images, np.asarray(found.targets, np.int64)), tuple(found.classes)

    parts = (lambda: read(True)[0]), (lambda: read(False)[0]), (lambda: read(False)[1])
    return ImageDataset(official.__name__, classes, normalization, subset_seed, True, *parts)


def _official(official: type, root: Path, train: bool) -> CIFAR10:
    """The official files through torchvision, which checks their md5 and downloads them when they are missing."""
    try:
        with suppress(RuntimeError):  # raised for a file that is missing or whose md5 differs
            return official(root, train=train)
        test = folder.test_folder(root)
        if (root / "train").is_dir() and test.is_dir():
            holds = f"holds train/ and {test.name}/, not {official.__name__}"
            raise BadInput(f"--data_path {root}: {holds}; add --dataset Folder")
        root.mkdir(parents=True, exist_ok=True)
        with locks.hold(root / f".{official.filename}.lock", timeout=-1):
            with suppress(RuntimeError):  # another process may have just downloaded them
                return official(root, train=train)
            download_and_extract_archive(official.url, root, filename=official.filename, md5=official.tgz_md5)
            return official(root, train=train)
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        place = root / official.base_folder
        state = "incomplete, or its md5 differs from the official one" if place.exists() else "missing"
        raise BadInput(
            f"{place}: {state}, and {official.url} cannot be downloaded ({error}); put the official python files there"
        ) from error


def _shapes10() -> ImageDataset:
    read = cache(lambda split: LabelledImages(*shapes.draw(split)))
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    splits = partial(read, "train"), partial(read, "test")
    return ImageDataset("Shapes10", len(shapes.CLASSES), normalization, 6, False, *splits, lambda: shapes.CLASSES)


def _folder(root: Path, image_size: int, report: Callable[[str], None]) -> ImageDataset:
    """Training images are stored with what their views need around them (data/views.py).

    At 32 pixels, all pictures are decoded now, and normalised with the mean and standard deviation of the training
    images' pixels; at another size, as torchvision's networks expect them.
    """
    name, (class_names, splits, notes) = dataset_name("Folder", root), folder.find(root)
    counts = [f"{len(splits[split].labels):,}" for split in ("train", "test")]
    report(f"{name}: {len(class_names)} classes, {counts[0]} training and {counts[1]} test images")
    for note in notes:
        report(note)

    def labelled(split: folder.Split, what: str, side: int) -> LabelledImages:
        return LabelledImages(Pictures(split.paths, what, image_size, side, split.folder, report), split.labels)

    train = labelled(splits["train"], "training pictures", Views(image_size).stored)
    test = labelled(splits["test"], "test pictures", image_size)
    parts = 6, False, lambda: train, test.decoded, lambda: class_names, image_size
    dataset = ImageDataset(name, len(class_names), IMAGENET, *parts)
    if image_size != CIFAR_SIZE:
        return dataset
    in_use, _ = dataset.decoded()
    mean, std = mean_and_std(in_use.images)
    return replace(dataset, normalization=Normalization(mean, np.maximum(std, 1e-3).tolist()), train=lambda: in_use)
