"""The authors' released teachers."""

from __future__ import annotations

import shlex
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from models import checkpoints
from utils import files
from utils.errors import BadInput

RELEASES = (  # of the paper's repository: its present and its former address
    "https://github.com/zju-vipa/NetGraft/releases/download/v1.0/",
    "https://github.com/sccbhxc/NetGraft/releases/download/v1.0/",
)
TIMEOUT = 30.0  # seconds without data
PIECE = 2**16  # bytes


class NotFetched(Exception):
    """An address did not serve a file; the message says why."""


def fetch_teacher(
    path: Path, classes: int, dataset: str, releases: tuple[str, ...] = RELEASES, inputs: Sequence[str] = ()
) -> None:
    """Download the released teacher of a data set, check its size and layout, and write it to `path`.

    releases: addresses, tried in this order. If all fail, raises BadInput with the error at each address and other ways
    to get a teacher, and leaves no file behind. inputs: the flags that name the data, for the command in this message.
    """
    name = f"vgg16-blockwise-{dataset.lower()}.pth"
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        arrived = Path(folder) / name
        for release in releases:
            try:
                with arrived.open("wb") as file:
                    file.writelines(pieces(release + name))
                checkpoints.read_teacher(arrived, classes)
            except (NotFetched, BadInput) as reason:
                reasons.append(f"{release}{name}: {str(reason).removeprefix(f'{arrived}: ')}")
            except OSError as error:
                raise BadInput(f"{folder}: {error.strerror or error}; free space there, or set TMPDIR") from error
            else:
                return files.write_bytes(path, arrived.read_bytes())
    train = shlex.join(["python", "train_fskd.py", *(inputs or ("--dataset", dataset)), "--train_teacher"])
    raise BadInput(
        f"{path}: missing, and cannot be fetched ({'; '.join(reasons)});"
        f" put a teacher there, or train one: {train} --teacher_recipe quick (the default is a recipe of 200 or 300"
        " epochs, a job for a GPU)"
    )


def pieces(url: str) -> Iterator[bytes]:
    """The file at an address, in pieces, with a progress bar. Raises NotFetched if it does not arrive completely."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length", "")
            total = int(announced) if announced.isdecimal() else None
            arrived = 0
            with tqdm(total=total, desc=url.rpartition("/")[2], unit="B", unit_scale=True, disable=None) as bar:
                while piece := response.read(PIECE):
                    yield piece
                    arrived += len(piece)
                    bar.update(len(piece))
    except (OSError, HTTPException) as error:
        reason = "".join(c if c.isprintable() else " " for c in str(error)).strip()
        raise NotFetched(reason[:200] or type(error).__name__) from error
    if total is not None and arrived != total:
        raise NotFetched(f"sent {arrived} of {total} bytes")
