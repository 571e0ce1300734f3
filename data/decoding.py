"""Many pictures as one array: decoded in parallel when they are asked for, or once into memory or into a file."""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from numpy.lib import format as npy
from PIL import Image

from data.pictures import quiet, square, upright
from data.views import Views
from utils import files, locks
from utils.errors import BadInput
from utils.machine import cores, free_host_memory
from utils.text import bar, say

BATCH = 256  # pictures that are decoded together
IN_MEMORY = 256_000_000  # bytes; pictures that take more go into a file
KEPT_FREE = 1_000_000_000  # bytes that the file leaves free on its disk; of a small disk a tenth
NAMED_FAULTS = 10  # in one message


class Pictures:
    """Pictures as a read-only array (N, 3, side, side) uint8, each as `from_picture` makes it (data/pictures.py).

    Indexed by a number, a slice, or numbers: those pictures are decoded. Raises BadInput that names the ones that
    cannot be read. sources: their files below `root`, or an array (N, H, W, 3) uint8. name: of all, for messages.
    image_size, side: as `from_picture` takes them. report: called with each line for the user.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        sources: Sequence[Path] | np.ndarray,
        name: str,
        image_size: int,
        side: int,
        root: Path | None = None,
        report: Callable[[str], None] = say,
    ):
        self.sources, self.name, self.root, self.report = sources, name, root, report
        self.image_size, self.stored = image_size, Views(image_size).stored
        self.shape = (len(sources), 3, side, side)
        self.nbytes = math.prod(self.shape)
        self._file: tuple[BinaryIO, int] | None = None  # one that holds them decoded, and where they begin
        self._says_enlarged = root is not None  # of an array, all are

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if self._file:  # a map for each access: pages of a lasting one would count as this process's memory
            file, start = self._file
            return np.array(np.memmap(file, self.dtype, "r", start, self.shape)[key])
        chosen, faults = np.arange(len(self))[key], []
        images, enlarged = self._decode(chosen.reshape(-1), faults)
        refuse(faults)
        self._say_enlarged(enlarged, len(images))
        return images.reshape(*chosen.shape, *self.shape[1:])

    @cached_property
    def decoded(self) -> np.ndarray | Pictures:
        """All, decoded once: in memory; or self, which then reads them from a file, if there is room for one.

        Raises BadInput that names all that cannot be read, or says that all are the same.
        """
        if self.root and self.nbytes > IN_MEMORY:
            self._use_file()
            return self
        if self.nbytes > free_host_memory() // 2:
            self.report(
                f"{self.name}: {self.nbytes / 1e9:.1f} GB do not fit into memory; resized each time they are used"
            )
            return self
        images, faults = np.empty(self.shape, self.dtype), []
        for start, batch in self._batches(faults):
            images[start : start + BATCH] = batch
        refuse(faults)
        return images

    def _batches(self, faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        """The index of each batch's first picture, and the batch. Adds what is wrong with any, or with all."""
        first, differ, enlarged = None, False, 0
        with bar(desc=self.name, unit="picture", total=len(self), delay=1) as done:
            for start in range(0, len(self), BATCH):
                images, small = self._decode(np.arange(start, min(start + BATCH, len(self))), faults)
                enlarged += small
                first = images[0].copy() if first is None else first
                differ = differ or bool((images != first).any())
                yield start, images
                done.update(len(images))
        self._say_enlarged(enlarged, len(self))
        if not (differ or faults):
            faults.append(f"{self.root or self.name}: {all_the_same(len(self), self.shape[-1])}")

    def _decode(self, chosen: np.ndarray, faults: list[str]) -> tuple[np.ndarray, int]:
        """Those pictures, in their order, and how many are enlarged. For each that cannot be read, a fault is added."""
        images = np.zeros((len(chosen), *self.shape[1:]), self.dtype)

        def decode(place: int) -> str | bool:
            """What is wrong with it, or whether it is enlarged."""
            source = self.sources[chosen[place]]
            try:
                picture = Image.fromarray(source) if isinstance(source, np.ndarray) else upright(source, source)
            except BadInput as fault:
                return str(fault)
            images[place] = square(picture, self.image_size, self.shape[-1])
            return min(picture.size) < self.stored

        with quiet(), ThreadPoolExecutor(cores()) as threads:
            found = list(threads.map(decode, range(len(chosen))))
        faults += [fault for fault in found if isinstance(fault, str)]
        return images, found.count(True)

    def _say_enlarged(self, enlarged: int, count: int) -> None:
        """Once: of `count` pictures, so many are enlarged."""
        if enlarged and self._says_enlarged:
            few = f"{enlarged:,} of {count:,} {self.name}"
            self.report(f"{few} have a side of less than {self.stored} pixels and are enlarged")
            self._says_enlarged = False

    def _use_file(self) -> None:
        """Read from the file in the user's cache, which is written if it is not there. Says so where that fails."""
        folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fskd"  # noqa: PTH111
        kind = f"{self.shape[-1]}-{files.sha256(os.fsencode(self.root.resolve()))[:12]}"
        file, faults = folder / f"{kind}-{self._state()[:24]}.npy", []
        if self._opens(file):
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locks.hold(folder / f".{kind}.lock", timeout=-1):
                if not self._opens(file):  # another process may have just written it
                    self._write(file, kind, faults)
                    self._opens(file)
        except (BadInput, OSError) as error:
            refuse(faults)
            reason = str(error) if isinstance(error, BadInput) else f"{folder}: cannot be written ({error})"
            self.report(
                f"{reason}; {self.name} are decoded each time they are used, unless XDG_CACHE_HOME names another folder"
            )

    def _state(self) -> str:
        """A hash of what the file depends on: all pictures' names, sizes and times, and how they are decoded."""
        digest = hashlib.sha256(f"1 {PIL.__version__} {self.image_size} {self.shape}".encode())
        for path in self.sources:
            found, name = path.stat(), os.fsencode(path.relative_to(self.root))
            digest.update(name + f"\0{found.st_size} {found.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def _opens(self, file: Path) -> bool:
        """Whether the file is there and whole; it then stays open, whoever removes it."""
        try:
            opened = file.open("rb")
            npy.read_magic(opened)
            shape, _, dtype = npy.read_array_header_1_0(opened)
            start, end = opened.tell(), os.fstat(opened.fileno()).st_size
        except (OSError, ValueError):
            return False
        if (shape, dtype, end - start) == (self.shape, self.dtype, self.nbytes):
            self._file = opened, start
        return self._file is not None

    def _write(self, file: Path, kind: str, faults: list[str]) -> None:
        """Raises BadInput where it cannot be written, or with the faults of the pictures."""
        for old in (*file.parent.glob(f"{kind}-*.npy"), *file.parent.glob(f".{kind}-*.tmp")):
            old.unlink()  # of pictures that have changed, or of a write that was killed
        disk, size = shutil.disk_usage(file.parent), f"{self.nbytes / 1e6:,.1f} MB"
        if disk.free - self.nbytes < min(KEPT_FREE, disk.total / 10):
            raise BadInput(f"{file.parent}: has no room for {size}; free space or set XDG_CACHE_HOME to another folder")
        self.report(f"decoding {len(self):,} {self.name} once into {file}, {size}")

        def parts() -> Iterator[bytes | memoryview]:
            head = io.BytesIO()
            npy.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
            yield head.getvalue()
            for _, images in self._batches(faults):
                yield images.data
            refuse(faults)

        files.write_parts(file, parts())


def all_the_same(count: int, side: int) -> str:
    """The message for a set of pictures that are all the same."""
    return (
        f"all its {count} pictures are the same in {side}x{side} pixels of RGB, what is transparent on white; give"
        " pictures that differ"
    )


def refuse(faults: Sequence[str]) -> None:
    """Raise BadInput with the first of the faults, if there are any."""
    if faults:
        more = f"; and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise BadInput("; ".join(faults[:NAMED_FAULTS]) + more)
