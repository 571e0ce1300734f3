"""What a file that cannot be read is instead, and what to do, in a few words for messages."""

import pickle
import re
import zipfile
from contextlib import suppress
from pathlib import Path

BEGINNINGS = {
    b"version https://git-lfs": "it is a Git LFS pointer; git lfs pull fetches the file itself",
    b"<": "it is a web page; download the file itself",
    b"\x1f\x8b": "it is a gzip archive; unpack it",
}
TEXT = frozenset(range(256)) - frozenset(range(32)) | frozenset(b"\t\n\f\r")  # no other control characters


def instead(path: Path) -> str | None:
    """What is in the place of a file of any kind; None if it is nothing that is known by its beginning."""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(64).lstrip()
        return next((what for begin, what in BEGINNINGS.items() if start.startswith(begin)), None)
    return None


def instead_of_tensors(path: Path, error: Exception) -> str:
    """The same for a file that torch.load refuses with this error, whose text may explain how to load it unsafely."""
    if found := re.search(r"GLOBAL (\S+) was not an allowed|(TorchScript) archive", str(error)):
        return f"it holds {found[1] or found[2]}, not only tensors; save model.state_dict() instead"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                return "it is a zip archive of other files; unpack it"
    with path.open("rb") as file:
        start = file.read(512)
    if TEXT.issuperset(start):
        return f"{'it is a text file' if start else 'the file is empty'}; copy or download the file itself"
    if isinstance(error, pickle.UnpicklingError):
        return "it is incomplete, or holds more than tensors, lists and dictionaries"
    return str(error) or "it is incomplete"
