import errno
import os
import socket
import socketserver
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

import pytest
from small import TINY, small_dataset

from models import checkpoints, download
from models.download import fetch_teacher
from models.vgg import BlockwiseVGG
from utils.errors import BadInput

pytestmark = pytest.mark.usefixtures("without_proxy")
CIFAR = replace(small_dataset(), name="CIFAR10")
FLAGS = ["--dataset", "CIFAR10", "--data_path", "my data"]
NAME = "vgg16-blockwise-cifar10.pth"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "ckpt" / "teacher.pth"
    path.parent.mkdir()
    return path


@pytest.fixture
def release(teacher, tmp_path, server):
    """The address of a server that has the teacher."""
    checkpoints.write_network(teacher, tmp_path / NAME)
    return f"{server}/"


@contextmanager
def answering(answer):
    """The address of a server that gives this answer to every request and hangs up."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()


@pytest.mark.parametrize("first", [None, b"HTTP/1.1 404 Gone\r\n\r\n", HEAD + bytes(100_000), b""])
def test_a_teacher_is_fetched_from_the_second_address_where_the_first_fails(tmp_path, release, target, first):
    with answering(first or b"") as address:
        fetch_teacher(target, CIFAR, FLAGS, (release,) if first is None else (address, release))
    assert target.read_bytes() == (tmp_path / NAME).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["teacher.pth"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (HEAD + bytes(100_000), "100000 bytes at its end did not arrive"),
        (HEAD, "200000 bytes at its end did not arrive"),
        (CHUNKED + b"ffff\r\nhalf", "IncompleteRead"),
        (b"these are not\x1bthe\r\ndroids", "these are not the"),
        (b"", "Remote end closed connection"),
        (b"HTTP/1.1 404 Gone\r\n\r\n", "HTTP Error 404: Gone"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>not found</html>", "not a checkpoint, or damaged"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nhalf", "not a checkpoint, or damaged"),
    ],
)
def test_an_answer_that_is_no_whole_file_is_one_line_and_leaves_nothing(server, target, answer, reason):
    missing = f"{server}/missing/"
    with answering(answer) as address, pytest.raises(BadInput) as refusal:
        fetch_teacher(target, CIFAR, FLAGS, (address, missing))
    message = str(refusal.value)
    assert message.startswith(f"{target}: missing, and cannot be fetched ({address}{NAME}: ") and message.isprintable()
    assert reason in message and f"{missing}{NAME}: HTTP Error 404: File not found)" in message
    assert "train_fskd.py --dataset CIFAR10 --data_path 'my data' --train_teacher" in message
    assert "--teacher:" not in message
    assert not list(target.parent.iterdir())


def test_the_teachers_that_are_there_are_offered(server, target):
    second = target.parent / "vgg16-blockwise-cifar10-second.pth"
    for there in (second, second.with_suffix(".json"), second.with_name("vgg16-blockwise-cifar100-quick.pth")):
        there.touch()
    with pytest.raises(BadInput) as refusal:
        fetch_teacher(target, CIFAR, FLAGS, (f"{server}/missing/",))
    offer = f"); use one that is there, with --teacher: {second}; or put a teacher there"
    assert offer in str(refusal.value)


def test_a_teacher_of_other_classes_is_refused(tmp_path, server, target):
    checkpoints.write_network(BlockwiseVGG(TINY, 7), tmp_path / NAME)
    with pytest.raises(BadInput, match=r"cifar10\.pth: has 7 classes"):
        fetch_teacher(target, CIFAR, FLAGS, (f"{server}/",))
    assert not list(target.parent.iterdir())


def test_a_full_disk_is_said(release, target, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r": cannot be written \(No space left on device\); free space"):
        fetch_teacher(target, CIFAR, FLAGS, (release,))
    assert not list(target.parent.iterdir())


def test_a_server_that_hangs_is_left(release, target, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BadInput, match=r"timed out; .*404"):
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        fetch_teacher(target, CIFAR, FLAGS, (address, f"{release}missing/"))
    assert not list(target.parent.iterdir())


def test_an_interrupted_download_leaves_nothing(release, target, monkeypatch):
    class Interrupted(download.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_teacher(target, CIFAR, FLAGS, (release,))
    assert not list(target.parent.iterdir())
