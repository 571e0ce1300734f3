import errno
import fcntl
import os

import pytest

from utils import locks
from utils.errors import BadInput


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def no_locks(request, monkeypatch):
    """A file system without locks, as NFS may be. The reason that it gives."""
    number = getattr(errno, request.param)

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    return os.strerror(number)


def test_a_lock_is_held_once(tmp_path):
    path = tmp_path / "new" / "a.lock"
    with locks.hold(path), pytest.raises(locks.Timeout):
        locks.hold(path)
    with locks.hold(path):
        pass


@pytest.mark.parametrize("timeout", [0, -1])
def test_without_locks_the_folder_is_named(tmp_path, no_locks, timeout):
    with pytest.raises(BadInput) as refusal:
        locks.hold(tmp_path / "a.lock", timeout)
    told = f"{tmp_path}: its file system has no file locks ({no_locks}); choose a folder on another file system"
    assert str(refusal.value) == told


def test_it_is_known_before_anything_is_locked(tmp_path, no_locks):
    with pytest.raises(BadInput, match="no file locks"):
        locks.require(tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_there_are_locks_nothing_is_left(tmp_path):
    locks.require(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_cannot_be_opened_is_another_fault(tmp_path):
    (tmp_path / "a.lock").mkdir()
    with pytest.raises(OSError, match=r"directory: .*a\.lock"):
        locks.hold(tmp_path / "a.lock")
