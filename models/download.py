"""The authors' released teachers."""

import glob
import shlex
import tempfile
import urllib.request
from collections.abc import Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from data.datasets import ImageDataset
from models import checkpoints
from utils import files
from utils.errors import BadInput

RELEASES = (  # of the paper's repository: its present and its former address
    "https://github.com/zju-vipa/NetGraft/releases/download/v1.0/",
    "https://github.com/sccbhxc/NetGraft/releases/download/v1.0/",
)
TIMEOUT = 30.0  # seconds without data


def fetch_teacher(path: Path, dataset: ImageDataset, inputs: Sequence[str], releases: Sequence[str] = RELEASES) -> None:
    """Download the released teacher of a data set, check it, and write it to `path`, whose folder exists.

    releases: addresses, tried in this order. If all fail, raises BadInput with the error at each address and other ways
    to get a teacher, first of them the teachers of this data set beside `path`, and leaves no file behind. inputs: the
    flags that name the data, for this message.
    """
    name, faults = f"vgg16-blockwise-{dataset.name.lower()}.pth", []
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        arrived = Path(folder) / name
        for address in (release + name for release in releases):
            try:
                content = download(address)
                files.write_bytes(arrived, content)
                checkpoints.read_teacher(arrived, dataset.classes)
            except (OSError, HTTPException, BadInput) as error:
                fault = "".join(c if c.isprintable() else " " for c in str(error).removeprefix(f"{arrived}: ")).strip()
                faults.append(f"{address}: {fault[:200] or type(error).__name__}")
            else:
                return files.write_bytes(path, content)
    train = shlex.join(["python", "train_fskd.py", *inputs, "--train_teacher"])
    there = ", ".join(existing_in(path.parent, dataset.name))
    raise BadInput(
        f"{path}: missing, and cannot be fetched ({'; '.join(faults)});"
        f"{f' use one that is there, with --teacher: {there}; or' if there else ''}"
        f" put a teacher there, or train one: {train} --teacher_recipe quick (the default is a recipe of 200 or 300"
        " epochs, a job for a GPU)"
    )


def existing_in(folder: Path, dataset: str) -> list[str]:
    """The block-wise teachers of a data set in a folder, by their names."""
    named = f"*-blockwise-{glob.escape(dataset.lower())}"
    return sorted(str(path) for end in (".pth", "-*.pth") for path in folder.glob(named + end))


def download(url: str) -> bytes:
    """The file at an address, with a progress bar. Raises OSError or HTTPException if it does not arrive completely."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        shown = {"total": response.length, "desc": url.rpartition("/")[2], "disable": None}
        with tqdm.wrapattr(response, "read", **shown) as counted:
            content = b"".join(iter(partial(counted.read, 2**16), b""))
        if response.length:
            raise OSError(f"{response.length} bytes at its end did not arrive")
    return content
