import pytest
from small import CLASSES, TINY

from models import checkpoints
from models.download import RELEASE, fetch_teacher
from models.vgg import BlockwiseVGG
from utils.errors import BadInput


def test_the_address_is_the_authors_release():
    assert RELEASE == "https://github.com/sccbhxc/NetGraft/releases/download/v1.0/"


def test_a_teacher_is_fetched_and_checked(teacher, tmp_path, server):
    checkpoints.write_teacher(teacher, tmp_path / "vgg16-blockwise-cifar10.pth")
    target = tmp_path / "ckpt" / "teacher.pth"
    fetch_teacher(target, CLASSES, "CIFAR10", f"{server}/")
    assert target.read_bytes() == (tmp_path / "vgg16-blockwise-cifar10.pth").read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["teacher.pth"]


@pytest.mark.parametrize("content", [b"<html>not found</html>", None])
def test_what_is_not_a_teacher_is_not_kept(tmp_path, server, content):
    if content is not None:
        (tmp_path / "vgg16-blockwise-cifar10.pth").write_bytes(content)
    target = tmp_path / "ckpt" / "teacher.pth"
    with pytest.raises(BadInput, match=r"teacher\.pth") as refusal:
        fetch_teacher(target, CLASSES, "CIFAR10", f"{server}/")
    assert "\n" not in str(refusal.value)
    assert not target.parent.exists() or not list(target.parent.iterdir())


def test_a_download_cut_short_is_noticed(teacher, tmp_path, server, monkeypatch):
    checkpoints.write_teacher(teacher, tmp_path / "vgg16-blockwise-cifar10.pth")
    monkeypatch.setattr("http.client.HTTPResponse.read", lambda self, *_: b"half")
    with pytest.raises(BadInput, match=r"sent 4 of \d+ bytes"):
        fetch_teacher(tmp_path / "teacher.pth", CLASSES, "CIFAR10", f"{server}/")


def test_a_teacher_of_other_classes_is_refused(tmp_path, server):
    checkpoints.write_teacher(BlockwiseVGG(TINY, 7), tmp_path / "vgg16-blockwise-cifar10.pth")
    with pytest.raises(BadInput, match="has 7 classes"):
        fetch_teacher(tmp_path / "ckpt" / "teacher.pth", CLASSES, "CIFAR10", f"{server}/")
    assert not (tmp_path / "ckpt" / "teacher.pth").exists()
