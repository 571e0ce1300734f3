"""The authors' released teachers."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from models import checkpoints
from utils import files
from utils.errors import BadInput

RELEASE = "https://github.com/sccbhxc/NetGraft/releases/download/v1.0/"


def fetch_teacher(path: Path, classes: int, dataset: str, release: str = RELEASE) -> None:
    """Fetch the released teacher of a data set, check its size and layout, and put it at `path`.

    Raises BadInput saying how to get a teacher otherwise; nothing is left behind then.
    """
    url = f"{release}vgg16-blockwise-{dataset.lower()}.pth"
    otherwise = f"put a teacher there, or train one: --dataset {dataset} --train_teacher"
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            announced = response.headers.get("Content-Length")
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise BadInput(f"{path}: missing, and {url} cannot be fetched ({reason}); {otherwise}") from error
    if announced is not None and int(announced) != len(content):
        raise BadInput(f"{path}: {url} sent {len(content)} of {announced} bytes; run again, or {otherwise}")
    arrived = path.with_name(f"{path.name}.arrived")
    files.write_bytes(arrived, content)
    try:
        checkpoints.read_teacher(arrived, classes)
        arrived.replace(path)
    finally:
        arrived.unlink(missing_ok=True)
