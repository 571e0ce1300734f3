"""A folder of pictures as a data set: train/ and test/ or val/, each with a folder of pictures for every class."""

from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, is_image_file

from data.decoding import refuse
from data.pictures import class_folders, find_files, is_foreign
from utils.errors import BadInput
from utils.text import in_one_line


@dataclass(frozen=True)
class Split:
    """The pictures of a split, class by class. folder: holds them. labels: (N,) int64 in 0..classes-1."""

    folder: Path
    paths: list[Path]
    labels: np.ndarray


def test_folder(root: Path) -> Path:
    """test/, or val/ if there is only that, as in ImageNet."""
    return root / "val" if (root / "val").is_dir() and not (root / "test").is_dir() else root / "test"


def find(root: Path) -> tuple[tuple[str, ...], dict[str, Split], list[str]]:
    """The class names, "train" and "test" by name, and lines for the user on what is not used.

    No picture is opened. A class is known by its folder's name in Unicode's composed form (NFC), since a Mac may have
    decomposed it. Raises BadInput unless both splits have the same two or more classes, each with a picture.
    """
    folders = {"train": root / "train", "test": test_folder(root)}
    for folder in folders.values():
        if not folder.is_dir():
            needed = "--dataset Folder needs train/ and test/ (or val/) under --data_path"
            raise BadInput(f"{folder}: no such directory; {needed}")
    faults: list[str] = []
    classes = {split: _classes(folder, faults) for split, folder in folders.items()}
    faults += [*_missing(folders, classes, "train", "test"), *_missing(folders, classes, "test", "train")]
    unused = Counter[str]()
    splits = {split: _split(folder, classes[split], faults, unused) for split, folder in folders.items()}
    if len(classes["train"]) < 2:
        faults.append(f"{folders['train']}: needs a folder of pictures for each of two or more classes")
    refuse(faults)
    notes = []
    if folders["test"].name == "test" and (root / "val").is_dir():
        notes.append(f"{root}: holds test/ and val/; test/ is used")
    if unused:
        listed = ", ".join(f"{count} {in_one_line(what)}" for what, count in sorted(unused.items()))
        rule = f"skipped, since pictures end in {', '.join(IMG_EXTENSIONS)} and lie in the folder of their class"
        notes.append(f"{rule}: {listed}")
    return tuple(sorted(classes["train"])), splits, notes


def _split(folder: Path, classes: dict[str, Path], faults: list[str], unused: Counter[str]) -> Split:
    paths, labels = [], []
    unused.update(_beside_classes(folder))
    for label, name in enumerate(sorted(classes)):
        files = find_files(classes[name])
        found = [path for path in files if is_image_file(path.name)]
        unused.update(_ending(path) for path in files if not is_image_file(path.name))
        if not found:
            faults.append(f"{classes[name]}: no picture in it; each class needs one of {', '.join(IMG_EXTENSIONS)}")
        paths += found
        labels += [label] * len(found)
    return Split(folder, paths, np.asarray(labels, np.int64))


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
        lines.append(f"{folders[other]}: has no folder {name!r}, which {folders[split].name}/ has{there}")
    return lines


def _beside_classes(split: Path) -> list[str]:
    """What lies in a split beside the folders of its classes."""
    files = (path for path in split.iterdir() if path.is_file() and not path.name.startswith("."))
    foreign = [f"folder {name}" for name in class_folders(split) if is_foreign(name)]
    return foreign + ["in no class" if is_image_file(path.name) else _ending(path) for path in files]


def _ending(path: Path) -> str:
    return path.suffix.lower() or "no extension"
