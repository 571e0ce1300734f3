"""A network's record: a small JSON file beside the network's file. `student.pth` has `student.json`.

The released layout holds weights only; the predictions also depend on the normalisation, the order of the classes, the
size of the images and, for a student, on the teacher, some of whose blocks it uses.
"""

from pathlib import Path
from typing import Any

from data.datasets import ImageDataset
from utils import files
from utils.errors import BadInput

KIND = "the record of a network's file; remove it to use the network unchecked"
NAMES = {
    "teacher_sha256": "teacher",
    "normalization": "normalisation",
    "class_names": "class names",
    "image_size": "image size",
}
ADVICE = {
    "teacher_sha256": "name that one with --teacher",
    "normalization": "a Folder is normalised as its pictures in train/ are: use those that it was made with, or train a"
    " teacher on these under another name (--train_teacher --teacher FILE)",
}


def deciding(dataset: ImageDataset, teacher_sha256: str | None = None) -> dict[str, Any]:
    """What determines predictions on a data set besides the weights. teacher_sha256: for a student, of its teacher."""
    of_teacher = {} if teacher_sha256 is None else {"teacher_sha256": teacher_sha256}
    return {
        **of_teacher,
        "image_size": dataset.image_size,
        "class_names": list(dataset.class_names()),
        "normalization": dataset.normalization.content,
    }


def path_of(network_file: Path) -> Path:
    return network_file.with_suffix(".json")


def require_own(network_file: Path) -> None:
    """Raise BadInput where a file that is no record has the place of this network's."""
    path = path_of(network_file)
    if path.exists() and "sha256" not in files.read_json(path, KIND):
        raise BadInput(f"{path}: exists already and is no record of a network; name another file for the network")


def announce(network_file: Path, content: dict[str, Any]) -> None:
    """Write the record of a network's file that is about to be written."""
    files.write_json(path_of(network_file), {"sha256": None, **content})


def is_announced(network_file: Path) -> bool:
    """Whether the network's file was about to be written, or just written, when its process ended."""
    path = path_of(network_file)
    return path.exists() and files.read_json(path, KIND).get("sha256", "") is None


def write(network_file: Path, content: dict[str, Any]) -> None:
    """Write the record of a network's file. It names the sha256 of that file."""
    files.write_json(path_of(network_file), {"sha256": files.sha256_of_file(network_file), **content})


def check(network_file: Path, expected: dict[str, Any]) -> str | None:
    """Raise BadInput if the record differs from what is expected. Returns a message if something cannot be checked."""
    path, missing = path_of(network_file), list(expected)
    if not path.exists():
        fault = "has no record beside it"
    elif is_announced(network_file):
        fault = "was being written when its process ended; the command that was writing it, again, completes it"
    elif (record := of(network_file)) is None:
        fault = f"{path.name} is the record of another file"
    else:
        for key, value in expected.items():
            if key in record and record[key] != value:
                other = "other" if NAMES[key].endswith("s") else "another"
                advice = ADVICE.get(key, f"use the {NAMES[key]} that it was made with")
                raise BadInput(
                    f"{network_file}: was made with {other} {NAMES[key]} ({files.difference(record[key], value)}), so"
                    f" its accuracy here would not be its own; {advice}"
                )
        fault, missing = f"{path.name} is incomplete", [key for key in expected if key not in record]
    return f"{network_file}: {fault}; not checked: {', '.join(NAMES[key] for key in missing)}" if missing else None


def of(network_file: Path) -> dict[str, Any] | None:
    """The record of exactly this file; None if there is none, or one of another file."""
    path = path_of(network_file)
    if not (path.exists() and network_file.exists()):
        return None
    record = files.read_json(path, KIND)
    return record if record.get("sha256") == files.sha256_of_file(network_file) else None


def setting_of(network_file: Path) -> dict[str, Any]:
    """The setting in the record of exactly this file; empty if there is none."""
    with files.reading(path_of(network_file), KIND):
        return {**(of(network_file) or {}).get("setting", {})}
