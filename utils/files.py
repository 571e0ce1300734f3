"""Atomic file writes, and reading that never runs code from a file."""

import errno
import glob
import hashlib
import io
import json
import lzma
import os
import pickle
import re
import secrets
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import BadInput
from utils.foreign import instead, instead_of_tensors

TOO_LONG = "shorten it; students and default teachers are named after the folder of pictures"  # advice for a path


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, as `write_parts` does."""
    write_parts(path, (content,))


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write all parts, in turn, to `path` atomically: a reader sees the old file or the new one, never a part.

    Raises BadInput if that fails. Then, and after an interruption, the old file stays as it was.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _temporary(path: Path) -> Path:
    """Where the content of `path` is written first. Nothing else that belongs to `path` has a longer name."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _not_written(path: Path, error: OSError) -> BadInput:
    advice = TOO_LONG if error.errno == errno.ENAMETOOLONG else "free space or choose another folder"
    return BadInput(f"{path}: cannot be written ({error.strerror or error}); {advice}")


def _flush(directory: Path) -> None:
    """Have the names in a directory survive a power cut, where the system can."""
    with suppress(OSError, AttributeError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed writes of `path`. No process may be writing it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json_text(content) + "\n")


def json_text(content: dict[str, Any]) -> str:
    """JSON, indented, but with every list or object of numbers on one line. ValueError if one is not finite."""
    text = json.dumps(content, indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: re.sub(r"\n\s*", " ", found[0]), text)


_NUMBER = r'\n\s+(?:"[^"\n]*": )?-?[\d.]+(?:[eE][+-]?\d+)?'
_NUMBERS = re.compile(rf"[\[{{]{_NUMBER}(?:,{_NUMBER})*\n\s*[\]}}]")  # JSON text holds no line break within a string


def brief(value: Any) -> str:
    """A value as JSON, cut to 20 characters, for messages."""
    if isinstance(value, str) and len(value) > 18:
        return json.dumps(f"{value[:15]}...")
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:17]}..."


def difference(saved: Any, now: Any) -> str:
    """The first place where two values differ, and both there, for messages: 'L3, epochs: 150, now 100'.

    An entry of a list is named by its "phase", if it has one, or by its place.
    """
    place = []
    while isinstance(saved, dict | list) and type(saved) is type(now):
        before, after = _by_name(saved), _by_name(now)
        name = next((name for name in {**before, **after} if before.get(name) != after.get(name)), None)
        if name is None:  # null on one side, nothing on the other
            break
        place.append(name.replace("_", " "))
        saved, now = before.get(name), after.get(name)
    where = f"{', '.join(place)}: " if place else ""
    return f"{where}{brief(saved)}, now {brief(now)}"


def _by_name(value: dict[str, Any] | list[Any]) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    return {
        str(entry.get("phase", place) if isinstance(entry, dict) else place): entry
        for place, entry in enumerate(value, start=1)
    }


def write_tensors(path: Path, content: Any, legacy: bool = False) -> None:
    """`torch.save`, atomically. `legacy` is the serialisation of the released files (before PyTorch 1.6)."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    write_bytes(path, buffer.getvalue())


def require_there(path: Path) -> None:
    if not path.exists():
        raise BadInput(f"{path}: no such file")


def require_writable(directory: Path, *names: str) -> None:
    """Make the directory, and raise BadInput now rather than after hours if it cannot be written.

    names: of the files that will be written into it. One of them may be too long for the file system, or a folder.
    """
    for name in names:
        if (directory / name).is_dir():
            raise BadInput(f"{directory / name}: is a folder, where a file is to be written; remove it")
    longest = directory / max(names, key=lambda name: len(os.fsencode(name)), default="probe")
    probe = _temporary(longest)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have taken it for a leftover
    except OSError as error:
        raise _not_written(longest if error.errno == errno.ENAMETOOLONG else directory, error) from error


UNREADABLE = (  # what unpicklers and tensor readers raise for files of another format
    pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, zlib.error,
    AssertionError, ImportError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile, OSError, lzma.LZMAError,
)  # fmt: skip


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn errors in reading `path` into BadInput. kind: what the file should be, and after a semicolon what to do."""
    what, semicolon, advice = kind.partition(";")
    try:
        yield
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; expected {what}") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a directory; expected {what}") from None
    except PermissionError:
        raise BadInput(f"{path}: cannot be read (permission denied)") from None
    except UNREADABLE as error:
        reason = instead(path) or str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise BadInput(f"{path}: not {what}, or damaged ({reason}){semicolon}{advice}") from None


def require_checksums(path: Path) -> None:
    """Raise one of UNREADABLE for a zip file whose content is not what was written."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise ValueError("its checksums differ")


def read_tensors(path: Path, kind: str) -> Any:
    """Tensors saved by `torch.save` from any device, old or new serialisation, loaded to the CPU.

    Only plain containers of tensors are admitted (`weights_only`): a file that would run code is refused.
    """
    with reading(path, kind):
        if zipfile.is_zipfile(path):  # torch.load does not look at the checksums
            require_checksums(path)
        with warnings.catch_warnings():  # about pickle protocols; real faults are raised
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except OSError:
                raise
            except UNREADABLE as error:
                raise ValueError(instead_of_tensors(path, error)) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Admits a numpy array and nothing else."""

    ADMITTED = (
        ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"), ("_codecs", "encode"),
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only a numpy array is admitted")
        return super().find_class(module, name)


def read_pickled_array(path: Path, kind: str) -> np.ndarray:
    """A pickled numpy array. Any other pickle is refused without running it."""
    with reading(path, kind):
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
        if not isinstance(content, np.ndarray) or content.dtype.hasobject:
            raise ValueError("it does not hold an array of numbers")
        return content


def read_json(path: Path, kind: str) -> dict[str, Any]:
    with reading(path, kind):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content


def sha256(content: bytes | np.ndarray) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else np.ascontiguousarray(content)).hexdigest()


def sha256_of_file(path: Path) -> str:
    return sha256(path.read_bytes())
