"""Few-shot subsets (docs/method.md, section 2): N images per class, drawn once, without labels.

The subset of N+1 shots contains the subset of N. Labels are used only here, to draw the same number of images from
each class; they are not stored.
"""

import pickle
import random
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.datasets import ImageDataset
from data.decoding import all_the_same
from data.views import Views
from utils import files
from utils.errors import BadInput


def draw(dataset: ImageDataset, shots: int, seed: int) -> np.ndarray:
    """Class by class, shuffle the class's images and take the first `shots`.

    Returns (shots * classes, 3, stored, stored) uint8 (data/views.py); of pictures, only these are decoded. Raises
    BadInput when a class has too few images, or when all that are drawn are the same.
    """
    source, train = random.Random(seed), dataset.train()
    chosen: list[int] = []
    for label in range(dataset.classes):
        members = np.flatnonzero(train.labels == label).tolist()
        source.shuffle(members)
        if len(members) < shots:
            name, most = dataset.class_names()[label], np.bincount(train.labels, minlength=dataset.classes).min()
            raise BadInput(
                f"--nshot {shots}: class {name!r} has only {len(members)} training images; give at most {most}, the"
                " number of the smallest class"
            )
        chosen += members[:shots]
    images = train.images[chosen]
    if (images == images[0]).all():
        raise BadInput(f"--nshot {shots}: of {dataset.name}, {all_the_same(len(images), images.shape[-1])}")
    return images


def path_of(dataset: ImageDataset, shots: int, seed: int, data_path: Path) -> Path:
    """Path of a subset's file: the released name, with the seed added when it is not the released one."""
    suffix = "" if seed == dataset.subset_seed else f"-seed{seed}"
    return data_path / f"{dataset.name.lower()}-random-{shots}-per-class{suffix}.pkl"


def subset(dataset: ImageDataset, shots: int, seed: int, data_path: Path) -> np.ndarray:
    """The N-shot subset (shots * classes, 3, stored, stored) uint8: from its file, or drawn (and then written).

    For data sets without published subsets no file is written: it would be wrong once the pictures change. Raises
    BadInput for a file that holds anything else.
    """
    if not dataset.published_subsets:
        return draw(dataset, shots, seed)
    path = path_of(dataset, shots, seed, data_path)
    if not path.exists():
        images = draw(dataset, shots, seed)
        with suppress(BadInput):  # the folder may be read-only; the subset is then drawn each time
            files.write_bytes(path, pickle.dumps(images, protocol=4))  # a pickled array, as released
        return images
    images = files.read_pickled_array(path, "a pickled few-shot subset")
    side = Views(dataset.image_size).stored
    expected = (shots * dataset.classes, 3, side, side)
    if images.dtype != np.uint8 or images.shape != expected:
        raise BadInput(
            f"{path}: holds {images.dtype} {images.shape}, not uint8 {expected}; remove it to draw the subset again"
        )
    return images


def build(dataset: ImageDataset, shots: int, seed: int, data_path: Path) -> Path:
    """Draw a subset and write its file, if there is none. Raises BadInput if it cannot be written or holds another."""
    path, images = path_of(dataset, shots, seed, data_path), draw(dataset, shots, seed)
    if not path.exists():
        files.write_bytes(path, pickle.dumps(images, protocol=4))
    elif not np.array_equal(subset(dataset, shots, seed, data_path), images):
        raise BadInput(f"{path}: holds another subset than the seed {seed} draws; remove it to draw it again")
    return path
