import errno
import socketserver
import tempfile
from contextlib import contextmanager
from threading import Thread

import pytest
from small import CLASSES, TINY

from models import checkpoints, download
from models.download import RELEASES, fetch_teacher
from models.vgg import BlockwiseVGG
from utils.errors import BadInput

pytestmark = pytest.mark.usefixtures("without_proxy")
NAME = "vgg16-blockwise-cifar10.pth"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, in which nothing may remain."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def target(tmp_path):
    return tmp_path / "ckpt" / "teacher.pth"


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


def test_the_addresses_are_the_authors_release():
    assert RELEASES == (
        "https://github.com/zju-vipa/NetGraft/releases/download/v1.0/",
        "https://github.com/sccbhxc/NetGraft/releases/download/v1.0/",
    )


@pytest.mark.parametrize("first", [None, b"HTTP/1.1 404 Gone\r\n\r\n", HEAD + bytes(100_000), b""])
def test_a_teacher_is_fetched_from_the_second_address_where_the_first_fails(tmp_path, release, target, first):
    with answering(first or b"") as address:
        fetch_teacher(target, CLASSES, "CIFAR10", (release,) if first is None else (address, release))
    assert target.read_bytes() == (tmp_path / NAME).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["teacher.pth"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (HEAD + bytes(100_000), "sent 100000 of 200000 bytes"),
        (HEAD, "sent 0 of 200000 bytes"),
        (CHUNKED + b"ffff\r\nhalf", "IncompleteRead"),
        (b"these are not\x1bthe\r\ndroids", "these are not the"),
        (b"", "Remote end closed connection"),
        (b"HTTP/1.1 404 Gone\r\n\r\n", "HTTP Error 404: Gone"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>not found</html>", "not a checkpoint, or damaged"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nhalf", "not a checkpoint, or damaged"),
    ],
)
def test_an_answer_that_is_no_whole_file_is_one_line_and_leaves_nothing(server, target, answer, reason):
    flags, missing = ["--dataset", "CIFAR10", "--data_path", "my data"], f"{server}/missing/"
    with answering(answer) as address, pytest.raises(BadInput) as refusal:
        fetch_teacher(target, CLASSES, "CIFAR10", (address, missing), flags)
    message = str(refusal.value)
    assert message.startswith(f"{target}: missing, and cannot be fetched ({address}{NAME}: ") and message.isprintable()
    assert reason in message and f"{missing}{NAME}: HTTP Error 404: File not found)" in message
    assert "train_fskd.py --dataset CIFAR10 --data_path 'my data' --train_teacher" in message
    assert not target.parent.exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path, server, target):
    checkpoints.write_network(BlockwiseVGG(TINY, 7), tmp_path / NAME)
    with pytest.raises(BadInput, match=r"cifar10\.pth: has 7 classes"):
        fetch_teacher(target, CLASSES, "CIFAR10", (f"{server}/",))
    assert not target.parent.exists()


def test_a_full_temporary_folder_is_named(release, target, monkeypatch, temporary):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.checkpoints, "read_teacher", full)
    with pytest.raises(BadInput, match=rf"^{temporary}/.*: No space left on device; free space there, or set TMPDIR"):
        fetch_teacher(target, CLASSES, "CIFAR10", (release,))


def test_an_interrupted_download_leaves_nothing(release, target, monkeypatch, temporary):
    class Interrupted(download.tqdm):
        def update(self, n=1):
            assert list(temporary.rglob(NAME))
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_teacher(target, CLASSES, "CIFAR10", (release,))
    assert not target.parent.exists()
