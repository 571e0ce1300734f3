"""What a network's file cannot say, in a small JSON file beside it: `student.pth` has `student.json`.

The released layout holds weights alone. The predictions also depend on the normalisation, the order of the classes,
the size of the images and, for a student, on the teacher whose blocks 0 to 2 it uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.datasets import ImageDataset
from data.views import IMAGE_SIZE
from utils import files
from utils.errors import BadInput

KIND = "the record of a network's file; remove it to use the network unchecked"
NAMES = {
    "teacher_sha256": "teacher",
    "normalization": "normalisation",
    "class_names": "class names",
    "image_size": "image size",
}


def deciding(dataset: ImageDataset, teacher_sha256: str | None = None) -> dict[str, Any]:
    """What decides predictions on a data set beside the weights; teacher_sha256: of a student's teacher."""
    of_teacher = {} if teacher_sha256 is None else {"teacher_sha256": teacher_sha256}
    return {
        **of_teacher,
        "normalization": dataset.normalization.content,
        "class_names": list(dataset.class_names()),
        "image_size": IMAGE_SIZE,
    }


def path_of(network_file: Path) -> Path:
    return network_file.with_suffix(".json")


def write(network_file: Path, content: dict[str, Any]) -> None:
    """Write the record of a network's file, which is bound to it by its sha256."""
    files.write_json(path_of(network_file), {"sha256": files.sha256_of_file(network_file), **content})


def check(network_file: Path, expected: dict[str, Any]) -> str | None:
    """Raise BadInput where the record disagrees with what is expected; a line where something cannot be checked."""
    path = path_of(network_file)
    if not path.exists():
        return f"{network_file}: without a record beside it; not checked: {_names(expected)}"
    record = files.read_json(path, KIND)
    if record.get("sha256") != files.sha256_of_file(network_file):
        return f"{network_file}: {path.name} is the record of another file; not checked: {_names(expected)}"
    for key, value in expected.items():
        if key in record and record[key] != value:
            raise BadInput(
                f"{network_file}: was made with another {NAMES[key]} ({files.brief(record[key])}, now"
                f" {files.brief(value)}), so its accuracy here would mean nothing; give the one it was made with"
            )
    missing = [key for key in expected if key not in record]
    return f"{network_file}: {path.name} does not say, so not checked: {_names(missing)}" if missing else None


def _names(keys: Any) -> str:
    return ", ".join(NAMES[key] for key in keys)
