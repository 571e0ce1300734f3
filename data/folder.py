"""A folder of pictures as a data set: train/ and test/, each with a folder of pictures for every class."""

from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, is_image_file

from data.pictures import class_folders, find_files, from_picture, is_foreign
from utils.errors import BadInput
from utils.text import in_one_line

NAMED_FAULTS = 10  # in one message


@dataclass(frozen=True)
class Split:
    """The pictures of train/ or test/, class by class. folder: holds them. labels: (N,) int64 in 0..classes-1."""

    folder: Path
    paths: list[Path]
    labels: np.ndarray


def find(root: Path) -> tuple[tuple[str, ...], dict[str, Split], str]:
    """The class names, "train" and "test" by name, and which files are not used, for the user.

    No picture is opened. A class is known by its folder's name in Unicode's composed form (NFC), since a Mac may have
    decomposed it. Raises BadInput unless both splits have the same two or more classes, each with a picture.
    """
    folders = {split: root / split for split in ("train", "test")}
    for folder in folders.values():
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such directory; --dataset Folder needs train/ and test/ under --data_path")
    faults: list[str] = []
    classes = {split: _classes(folder, faults) for split, folder in folders.items()}
    faults += [*_missing(folders, classes, "train", "test"), *_missing(folders, classes, "test", "train")]
    names, splits, unused = tuple(sorted(classes["train"])), {}, Counter[str]()
    for split, folder in folders.items():
        paths, labels = [], []
        unused.update(_beside_classes(folder))
        for label, directory in enumerate(map(classes[split].get, sorted(classes[split]))):
            files = find_files(directory)
            found = [path for path in files if is_image_file(path.name)]
            unused.update(_ending(path) for path in files if not is_image_file(path.name))
            if not found:
                faults.append(f"{directory}: no picture in it; each class needs one of {', '.join(IMG_EXTENSIONS)}")
            paths += found
            labels += [label] * len(found)
        splits[split] = Split(folder, paths, np.asarray(labels, np.int64))
    if len(names) < 2:
        faults.append(f"{folders['train']}: needs a folder of pictures for each of two or more classes")
    refuse(faults)
    listed = ", ".join(f"{count} {in_one_line(what)}" for what, count in sorted(unused.items()))
    rule = f"skipped, since pictures end in {', '.join(IMG_EXTENSIONS)} and lie in the folder of their class"
    return names, splits, f"{rule}: {listed}" if unused else ""


def _classes(split: Path, faults: list[str]) -> dict[str, Path]:
    """The folder of each class, by its name in NFC."""
    found: dict[str, Path] = {}
    for name in class_folders(split):
        composed = normalize("NFC", name)
        if is_foreign(name):
            continue
        if composed in found:
            both = f"{found[composed].name!a} and {name!a}"
            faults.append(f"{split}: {both} are the same name, composed and decomposed; put their pictures together")
        found[composed] = split / name
    return found


def _missing(folders: dict[str, Path], classes: dict[str, dict[str, Path]], split: str, other: str) -> list[str]:
    """A line for each class of `split` that `other` has not."""
    lines = []
    for name in sorted(classes[split].keys() - classes[other].keys()):
        nearest = get_close_matches(name, classes[other], 1)
        there = f"; the nearest name there is {nearest[0]!r}" if nearest else ""
        lines.append(f"{folders[other]}: has no folder {name!r}, which {split}/ has{there}")
    return lines


def _beside_classes(split: Path) -> list[str]:
    """What lies in a split beside the folders of its classes."""
    files = (path for path in split.iterdir() if path.is_file() and not path.name.startswith("."))
    foreign = [f"folder {name}" for name in class_folders(split) if is_foreign(name)]
    return foreign + ["in no class" if is_image_file(path.name) else _ending(path) for path in files]


def _ending(path: Path) -> str:
    return path.suffix.lower() or "no extension"


def read(split: Split, image_size: int, side: int, faults: list[str]) -> np.ndarray:
    """Its pictures (N, 3, side, side) uint8, as `from_picture` reads them. Adds a line for each fault to `faults`."""
    images, before = np.empty((len(split.paths), 3, side, side), np.uint8), len(faults)
    for image, path in zip(images, split.paths, strict=True):
        try:
            image[:] = from_picture(path, path, image_size, side)
        except BadInput as fault:
            faults.append(str(fault))
    if len(faults) == before and all(np.array_equal(image, images[0]) for image in images):
        faults.append(
            f"{split.folder}: all its {len(images)} pictures are the same in {side}x{side} pixels of RGB, what is"
            " transparent on white; give pictures that differ"
        )
    return images


def refuse(faults: list[str]) -> None:
    """Raise BadInput with the first of the faults, if there are any."""
    if faults:
        more = f"; and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise BadInput("; ".join(faults[:NAMED_FAULTS]) + more)
