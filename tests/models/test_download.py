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


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, in which nothing may remain."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


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


def test_a_teacher_is_fetched_and_checked(teacher, tmp_path, server):
    checkpoints.write_teacher(teacher, tmp_path / NAME)
    target = tmp_path / "ckpt" / "teacher.pth"
    fetch_teacher(target, CLASSES, "CIFAR10", (f"{server}/",))
    assert target.read_bytes() == (tmp_path / NAME).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["teacher.pth"]


@pytest.mark.parametrize("content", [b"<html>not found</html>", None])
def test_what_is_not_a_teacher_is_not_written(tmp_path, server, content):
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    target = tmp_path / "ckpt" / "teacher.pth"
    with pytest.raises(BadInput, match=r"teacher\.pth") as refusal:
        fetch_teacher(target, CLASSES, "CIFAR10", (f"{server}/",))
    assert "\n" not in str(refusal.value) and not target.parent.exists()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (HEAD + bytes(100_000), "sent 100000 of 200000 bytes"),
        (HEAD, "sent 0 of 200000 bytes"),
        (CHUNKED + b"ffff\r\nhalf", "IncompleteRead"),
        (b"these are not\x1bthe\r\ndroids", "these are not the"),
        (b"", "Remote end closed connection"),
        (b"HTTP/1.1 404 Gone\r\n\r\n", "HTTP Error 404: Gone"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nhalf", "not a checkpoint, or damaged"),
    ],
)
def test_an_answer_that_is_no_whole_file_is_one_line_and_leaves_nothing(tmp_path, server, answer, reason):
    target = tmp_path / "ckpt" / "teacher.pth"
    with answering(answer) as address, pytest.raises(BadInput) as refusal:
        fetch_teacher(target, CLASSES, "CIFAR10", (address, f"{server}/missing/"))
    message = str(refusal.value)
    assert message.startswith(f"{target}: missing, and cannot be fetched ({address}{NAME}: ") and message.isprintable()
    assert reason in message and f"{server}/missing/{NAME}: HTTP Error 404: File not found)" in message
    assert not target.parent.exists()


def test_the_command_in_the_message_has_the_flags_of_the_users_data(tmp_path, server):
    inputs = ["--dataset", "CIFAR10", "--data_path", "my data"]
    with pytest.raises(BadInput) as refusal:
        fetch_teacher(tmp_path / "t.pth", CLASSES, "CIFAR10", (f"{server}/missing/",), inputs)
    assert "train_fskd.py --dataset CIFAR10 --data_path 'my data' --train_teacher" in str(refusal.value)


def test_a_full_temporary_folder_is_named(teacher, tmp_path, server, monkeypatch, temporary):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints.write_teacher(teacher, tmp_path / NAME)
    monkeypatch.setattr(download.checkpoints, "read_teacher", full)
    with pytest.raises(BadInput, match=rf"^{temporary}/.*: No space left on device; free space there, or set TMPDIR"):
        fetch_teacher(tmp_path / "teacher.pth", CLASSES, "CIFAR10", (f"{server}/",))


@pytest.mark.parametrize("first", [b"HTTP/1.1 404 Gone\r\n\r\n", HEAD + bytes(100_000), b""])
def test_the_second_address_is_tried_where_the_first_fails(teacher, tmp_path, server, first):
    checkpoints.write_teacher(teacher, tmp_path / NAME)
    with answering(first) as address:
        fetch_teacher(tmp_path / "teacher.pth", CLASSES, "CIFAR10", (address, f"{server}/"))
    assert (tmp_path / "teacher.pth").read_bytes() == (tmp_path / NAME).read_bytes()


def test_an_interrupted_download_leaves_nothing(teacher, tmp_path, server, monkeypatch, temporary):
    checkpoints.write_teacher(teacher, tmp_path / NAME)

    class Interrupted(download.tqdm):
        def update(self, n=1):
            assert list(temporary.rglob(NAME))
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_teacher(tmp_path / "ckpt" / "teacher.pth", CLASSES, "CIFAR10", (f"{server}/",))
    assert not (tmp_path / "ckpt").exists()


def test_the_progress_bar_counts_bytes(teacher, tmp_path, server, monkeypatch):
    checkpoints.write_teacher(teacher, tmp_path / NAME)
    bars = []

    class Kept(download.tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False})
            bars.append((self, options["disable"]))

    monkeypatch.setattr(download, "tqdm", Kept)
    fetch_teacher(tmp_path / "teacher.pth", CLASSES, "CIFAR10", (f"{server}/",))
    [(bar, disable)] = bars
    assert bar.n == bar.total == (tmp_path / NAME).stat().st_size and disable is None
    assert (bar.desc, bar.unit, bar.unit_scale) == (NAME, "B", True)


def test_a_teacher_of_other_classes_is_refused(tmp_path, server):
    checkpoints.write_teacher(BlockwiseVGG(TINY, 7), tmp_path / NAME)
    with pytest.raises(BadInput, match=r"cifar10\.pth: has 7 classes"):
        fetch_teacher(tmp_path / "ckpt" / "teacher.pth", CLASSES, "CIFAR10", (f"{server}/",))
    assert not (tmp_path / "ckpt").exists()
