import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small import pictures

from data import decoding, fewshot, shapes
from data.datasets import LabelledImages, open_dataset
from data.decoding import Pictures
from data.pictures import from_picture
from utils.errors import BadInput

SIZE, STORED, COUNT = 48, 55, 7


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A cache of one's own, and batches of three pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoding, "BATCH", 3)


@pytest.fixture
def root(tmp_path):
    """Pictures of different shapes; two of them are smaller than 55 pixels."""
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(pictures(COUNT)):
        size = (50 if i in (2, 6) else 60, 60 + i)
        Image.fromarray(image.transpose(1, 2, 0)).resize(size).save(tmp_path / f"pictures/{i}.png")
    return tmp_path / "pictures"


def all_in(root, lines=None):
    report = pytest.fail if lines is None else lines.append
    return Pictures(sorted(root.iterdir()), "test pictures", SIZE, STORED, root, report)


def expected_of(root):
    return np.stack([from_picture(path, path, SIZE, STORED) for path in sorted(root.iterdir())])


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache/fskd").glob("*") if path.suffix != ".lock")


def test_pictures_are_an_array_that_decodes_what_is_asked_for(root, monkeypatch):
    found, expected, opened = all_in(root, []), expected_of(root), []
    assert (len(found), found.shape, found.dtype) == (COUNT, expected.shape, expected.dtype)
    upright = decoding.upright
    monkeypatch.setattr(decoding, "upright", lambda path, name: opened.append(path.name) or upright(path, name))
    for key in (slice(None), slice(2, 5), slice(1, None, 3), [4, 0, 4], np.array([6]), np.array([], int), 3, -1):
        opened.clear()
        assert np.array_equal(found[key], expected[key])
        assert sorted(opened) == sorted(f"{i}.png" for i in np.atleast_1d(np.arange(COUNT)[key]))
    labelled = LabelledImages(found, np.arange(COUNT))
    assert labelled.sha256() == LabelledImages(expected, np.arange(COUNT)).sha256()
    batches = list(labelled.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 3]
    assert np.array_equal(np.concatenate([images.numpy() for images, _ in batches]), expected)


def test_small_sets_are_decoded_into_memory(root, tmp_path):
    lines = []
    found = all_in(root, lines)
    assert isinstance(found.decoded, np.ndarray) and np.array_equal(found.decoded, expected_of(root))
    assert lines == ["2 of 7 test pictures have a side of less than 55 pixels and are enlarged"]
    assert not (tmp_path / "cache").exists()


def test_enlarged_pictures_are_said_once(root):
    lines = []
    found = all_in(root, lines)
    for key in ([0, 1], [1, 2], [2, 6], slice(None)):
        found[key]
    assert lines == ["1 of 2 test pictures have a side of less than 55 pixels and are enlarged"]


@pytest.fixture
def in_files(monkeypatch):
    monkeypatch.setattr(decoding, "IN_MEMORY", 0)


def test_large_sets_are_decoded_once_into_a_file(root, tmp_path, monkeypatch, in_files):
    lines, expected = [], expected_of(root)
    found = all_in(root, lines).decoded
    (file,) = (tmp_path / "cache/fskd").glob("*.npy")
    assert lines[0] == f"decoding 7 test pictures once into {file}, 0.1 MB" and "are enlarged" in lines[1]
    monkeypatch.setattr(decoding, "upright", pytest.fail)
    monkeypatch.setattr(decoding.locks, "hold", pytest.fail)  # it may lie in a folder that cannot be written
    for again in (found, all_in(root).decoded):
        for key in (slice(None), slice(5, None), [3, 1], 2):
            assert np.array_equal(again[key], expected[key])
    assert np.array_equal(np.load(file), expected)
    file.unlink()
    assert np.array_equal(found[:], expected), "a run that uses it goes on"


@pytest.mark.parametrize("change", ["its time", "its size", "its name", "its number", "the size of images"])
def test_a_file_of_other_pictures_is_not_used(root, tmp_path, in_files, change):
    all_in(root, []).decoded[:]
    before, found = cached(tmp_path), all_in
    match change:
        case "its time":
            os.utime(root / "3.png", ns=(0, 0))
        case "its size":
            Image.fromarray(pictures(1, seed=9)[0].transpose(1, 2, 0)).resize((60, 70)).save(root / "3.png")
        case "its name":
            (root / "3.png").rename(root / "31.png")
        case "its number":
            (root / "3.png").unlink()
        case "the size of images":  # with crops of the same size
            found = lambda *_: Pictures(sorted(root.iterdir()), "pictures", 52, STORED, root, str)  # noqa: E731
    found(root, []).decoded[:]
    assert len(cached(tmp_path)) == 1 and cached(tmp_path) != before, "the other file is removed"


def test_what_a_killed_write_leaves_is_not_believed(root, tmp_path, monkeypatch, in_files):
    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(decoding, "square", cut)
        all_in(root, []).decoded  # noqa: B018
    assert cached(tmp_path) == []
    expected = all_in(root, []).decoded[:]
    (file,) = (tmp_path / "cache/fskd").glob("*.npy")
    for torn in (file.read_bytes()[:-1], file.read_bytes()[:100], b"", b"no array"):
        file.write_bytes(torn)
        (file.parent / f".{file.name}.0123abcd.tmp").write_bytes(b"of a killed process")
        assert np.array_equal(all_in(root, []).decoded[:], expected)
        assert cached(tmp_path) == [file.name]


@pytest.mark.parametrize("fault", ["a full disk", "no folder", "an error while writing", "no locks"])
def test_without_a_file_they_are_decoded_each_time(root, tmp_path, monkeypatch, in_files, fault):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    match fault:
        case "a full disk":
            usage = SimpleNamespace(free=COUNT * 3 * STORED**2 + 10**9 - 1, total=10**12)
            monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
        case "no folder":
            (tmp_path / "cache").write_text("no folder")
        case "an error while writing":
            monkeypatch.setattr(os, "fsync", fail)
        case "no locks":
            monkeypatch.setattr(decoding.locks, "hold", fail)
    lines = []
    found = all_in(root, lines)
    assert found.decoded is found and np.array_equal(found[:], expected_of(root))
    (line,) = (line for line in lines if "decoded each time they are used" in line)
    assert str(tmp_path / "cache/fskd") in line and "\n" not in line
    assert (tmp_path / "cache").is_file() or cached(tmp_path) == []


@pytest.mark.parametrize("limit", [0, 10**9])
def test_all_faults_are_named_together_and_nothing_is_kept(root, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(decoding, "IN_MEMORY", limit)
    monkeypatch.setattr(decoding, "NAMED_FAULTS", 2)
    for i in (1, 3, 6):
        (root / f"{i}.png").write_bytes(b"damaged")
    found = all_in(root, [])
    with pytest.raises(BadInput, match=r"^\S*/1\.png: [^;]*; replace[^;]*; \S*/3\.png: [^;]*; .*; and 1 more$"):
        found.decoded  # noqa: B018
    assert not (tmp_path / "cache").exists() or cached(tmp_path) == []
    with pytest.raises(BadInput, match=r"^\S*/3\.png: [^;]*; replace[^;]*$"):
        found[2:5]
    assert np.array_equal(found[[0, 2]], [from_picture(root / f"{i}.png", "", SIZE, STORED) for i in (0, 2)])


@pytest.mark.parametrize("name", ["CIFAR10", "Shapes10"])
def test_images_of_32_pixels_are_resized_as_pictures_are(official_files, monkeypatch, name):
    monkeypatch.setattr(decoding, "BATCH", 256)
    for split, count in (("train", 100), ("test", 50)):  # fewer are quicker
        monkeypatch.setitem(shapes.COUNTS, split, count)
    of_32 = open_dataset(name, official_files)
    dataset = open_dataset(name, official_files, SIZE)
    for split, side in (("train", STORED), ("test", SIZE)):
        images = getattr(of_32, split)().images[:20].transpose(0, 2, 3, 1)
        expected = np.stack([from_picture(Image.fromarray(image), "", SIZE, side) for image in images])
        found = getattr(dataset, split)()
        assert np.array_equal(found.images[:20], expected)
        assert found.labels.tolist() == getattr(of_32, split)().labels.tolist()
    assert dataset.train().decoded().images is dataset.train().decoded().images, "once per process"
    assert dataset.normalization.content == of_32.normalization.content and dataset.image_size == SIZE

    subset = fewshot.subset(of_32, 1, 6, official_files).transpose(0, 2, 3, 1)
    file = official_files / f"{name.lower()}-random-1-per-class.pkl"
    file.write_bytes(b"of 32 pixels, neither read nor replaced")
    found = fewshot.subset(dataset, 1, 6, official_files)
    assert np.array_equal(found, [from_picture(Image.fromarray(image), "", SIZE, STORED) for image in subset])
    assert file.read_bytes().startswith(b"of 32") and len(list(official_files.glob("*.pkl"))) == 1
