"""File locks. The operating system releases a lock when its process ends, however it ends."""

import secrets
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import BadInput

__all__ = ["Timeout", "hold", "require"]


def hold(path: Path, timeout: float = 0) -> AbstractContextManager:
    """Hold the lock file, made where it is missing. timeout: seconds to wait for another process, -1 for ever.

    Raises Timeout if another process holds it, OSError where it cannot be opened, BadInput where it cannot be locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path, fallback_to_soft=False).acquire(timeout=timeout)  # a soft lock outlives a killed process
    except OSError as error:
        if isinstance(error, Timeout) or error.filename:
            raise
        fault = f"its file system has no file locks ({error.strerror or error})"
        raise BadInput(f"{path.parent}: {fault}; choose a folder on another file system") from error


def require(directory: Path) -> None:
    """Raise BadInput now rather than after hours if files in the directory cannot be locked."""
    probe = directory / f".probe.{secrets.token_hex(4)}.lock"
    try:
        with hold(probe):
            pass
    finally:
        probe.unlink(missing_ok=True)
