import gzip
import io
import json
import os
import re
import signal
import stat
import struct
import zipfile

import pytest
import torch

from deployment import formats
from utils import files
from utils.errors import BadInput
from utils.signals import Terminated, terminate


def on_writing(monkeypatch, *signals, error=None):
    """While a file is written, these signals arrive and perhaps an error is raised."""

    def fsync(_):
        for number in signals:
            signal.raise_signal(number)
        if error:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)


FULL = OSError(28, "No space left on device")


def test_a_write_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    files.write_text(path, "old")
    with path.open() as reader:  # a reader in the middle of a write sees the old file
        files.write_text(path, "new")
        assert reader.read() == "old"
    on_writing(monkeypatch, error=FULL)
    with pytest.raises(BadInput, match=r"file: cannot be written .No space left on device.; free space") as refusal:
        files.write_text(path, "newer")
    assert path.read_text() == "new" and "\n" not in str(refusal.value)
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    with pytest.raises(BadInput, match="cannot be written"):
        files.write_text(path / "below", "x")


@pytest.mark.parametrize("name", ["x" * 250, "é" * 122])
def test_a_name_is_too_long_if_that_of_its_temporary_file_is(tmp_path, name):
    files.require_writable(tmp_path / "new", "short", "x" * 200)
    with pytest.raises(BadInput, match=f"{name}: cannot be written .File name too long.; shorten it"):
        files.require_writable(tmp_path / "new", "short", name)
    with pytest.raises(BadInput, match="File name too long"):
        files.write_text(tmp_path / "new" / name, "x")
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_in_the_place_of_a_file_is_found_before(tmp_path):
    (tmp_path / "table.md").mkdir()
    with pytest.raises(BadInput, match=r"table.md: is a folder, where a file is to be written; remove it"):
        files.require_writable(tmp_path, "other", "table.md")


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, number, raised):
    files.write_text(tmp_path / "file", "old")
    on_writing(monkeypatch, number)
    before = signal.signal(signal.SIGTERM, terminate)
    with pytest.raises(raised):
        files.write_text(tmp_path / "file", "new")
    signal.signal(signal.SIGTERM, before)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_json_has_lists_of_numbers_on_one_line(tmp_path):
    content = {
        "losses": [1.5, -2e-07, 3], "accuracies": {"1": 90.0, "20": 91.25}, "names": ["a", "[\n1\n]"], "empty": [],
        "deep": [{"span": [3, 4], "phase": "B0"}], "mixed": [1, None], "number": 7, "by_class": {"a b": 1, "a  b": 2},
    }  # fmt: skip
    files.write_json(tmp_path / "file", content)
    text = (tmp_path / "file").read_text()
    assert json.loads(text) == content
    for line in ('"losses": [ 1.5, -2e-07, 3 ],', '"accuracies": { "1": 90.0, "20": 91.25 },', '"span": [ 3, 4 ],'):
        assert line in text


@pytest.mark.parametrize("number", [float("nan"), -float("inf")])
def test_what_is_not_json_is_not_written(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "file", {"losses": [1.0, number]})
    assert list(tmp_path.iterdir()) == []


def test_files_have_the_usual_permissions(tmp_path):
    files.write_text(tmp_path / "ours", "x")
    (tmp_path / "usual").write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_tensors_come_back(tmp_path):
    content = {"a": torch.arange(3), "b": [torch.zeros(2), "text", 1.5]}
    for legacy in (True, False):
        files.write_tensors(tmp_path / "t", content, legacy)
        assert torch.equal(files.read_tensors(tmp_path / "t", "a test")["a"], content["a"])


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(b"abc") == files.sha256_of_file(tmp_path / "f") == known


@pytest.mark.parametrize("error", [struct.error("unpack requires 4 bytes"), zipfile.BadZipFile("several disks")])
def test_what_readers_raise_for_damaged_files_is_one_line(tmp_path, error):
    with (
        pytest.raises(BadInput, match="x: not a file of tensors, or damaged"),
        files.reading(tmp_path / "x", "a file of tensors"),
    ):
        raise error


def zipped(*names):
    with io.BytesIO() as written:
        with zipfile.ZipFile(written, "w") as archive:
            for name in names:
                archive.writestr(name, b"3")
        return written.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><title>Too many requests</title>"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "a Git LFS pointer; git lfs pull fetches"),
        (PAGE, "a web page; download the file itself"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page; download the file itself"),
        (gzip.compress(b"weights", mtime=0), "a gzip archive; unpack it"),
        (zipped("teacher.pth"), "a zip archive of other files; unpack it"),
        (zipped("x/version", "x/data.pkl", "x/constants.pkl"), "holds TorchScript, not only tensors; save model.state"),
        ("Zugriff verweigert: f\u00fcr Gew\u00e4hlte\n".encode(), "it is a text file; copy or download"),
        (b"", "the file is empty; copy or download"),
    ],
    ids=["LFS", "page", "XML", "gzip", "zip", "TorchScript", "text", "empty"],
)
def test_what_lies_in_the_place_of_weights_is_named(tmp_path, content, said):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(said)) as refusal:
        files.read_tensors(tmp_path / "x.pth", "a checkpoint")
    assert str(refusal.value).startswith(f"{tmp_path}/x.pth: not a checkpoint") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("read", [files.read_json, files.read_pickled_array, lambda path, kind: formats.read(path)])
@pytest.mark.parametrize(("content", "said"), [(POINTER, "Git LFS pointer"), (PAGE, "web page")], ids=["LFS", "page"])
def test_what_lies_in_the_place_of_other_files_is_named(tmp_path, read, content, said):
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(BadInput, match=rf"x\.pt2: not .*{said}"):
        read(tmp_path / "x.pt2", "a record")


def test_a_changed_bit_in_the_names_of_a_zip_file_is_a_value_error(tmp_path):
    """The kind of compression: what follows is no compressed text."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(3)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] ^= 8
    path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged"):
        files.read_tensors(path, "a file of tensors")


@pytest.mark.parametrize(
    ("saved", "now", "line"),
    [
        (0, 1, "0, now 1"),
        ("a", None, '"a", now null'),
        ({"mean": [0.5, 0.4]}, {"mean": [0.5, 0.25]}, "mean, 2: 0.4, now 0.25"),
        ([{"phase": "L2"}, {"phase": "L3"}], [{"phase": "L2"}, {"phase": "L3", "top_k": 1}], "L3, top k: null, now 1"),
        ([{"phase": "L2"}, {"phase": "L3"}], [{"phase": "L3"}], 'L2: {"phase": "L2"}, now null'),
        ([1], [1, 2], "2: null, now 2"),
        ([1], {"a": 1}, '[1], now {"a": 1}'),
        ({"a": None}, {}, '{"a": null}, now {}'),
    ],
)
def test_what_differs_is_named(saved, now, line):
    assert files.difference(saved, now) == line
