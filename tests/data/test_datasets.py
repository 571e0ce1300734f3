import fcntl
import shutil
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
from small import pictures
from torchvision import datasets as torchvision_datasets

from data import datasets, shapes
from data.datasets import LabelledImages, dataset_name, open_dataset
from utils import files
from utils.errors import BadInput


@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_official_files_are_read_without_a_write(official_files, name, classes):
    def state():
        return {path: path.stat().st_mtime_ns for path in [official_files, *official_files.rglob("*")]}

    before, dataset = state(), open_dataset(name, official_files)
    train, test = dataset.train(), dataset.test()
    assert dataset.classes == classes
    assert train.images.shape == (60 * classes, 3, 32, 32) and train.images.dtype == np.uint8
    assert test.images.shape == (2 * classes, 3, 32, 32)
    assert np.bincount(train.labels).tolist() == [60] * classes
    assert dataset.class_names() == tuple(str(label) for label in range(classes))  # as the meta file says
    assert state() == before


def test_the_hash_is_of_the_images_bytes_then_the_labels():
    """Of 3072 zeros and of 1 and 2 as eight bytes each, by sha256sum."""
    known = "67ceabb4fe1c5c6257ec798c819922321e8d77294ed49771e5c9e29cabaf17fa"
    images, labels = np.zeros((1, 3, 32, 32), np.uint8), np.array([1, 2])
    assert LabelledImages(images, labels).sha256() == known
    assert LabelledImages(images, labels.astype(">i4")).sha256() == known
    assert LabelledImages(images, np.array([1, 3])).sha256() != known
    images[0, 2, 31, 31] = 1
    assert LabelledImages(images, labels).sha256() != known
    images = pictures(2)
    many = pictures(600)
    assert LabelledImages(many, labels).sha256() == files.sha256(many.tobytes() + labels.tobytes())
    turned = np.ascontiguousarray(images.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert LabelledImages(turned, labels).sha256() == LabelledImages(images, labels).sha256()


def test_two_processes_fetch_missing_files_once(official_files, tmp_path, monkeypatch):
    """The second one comes while the first one downloads, and waits for it."""
    fetch, fetched, second = datasets.download_and_extract_archive, [], []

    def fetch_slowly(*arguments, **named):
        fetched.append(arguments)
        if len(fetched) == 1:
            second.append(pool.submit(open_dataset("CIFAR10", tmp_path / "new").test))
            with pytest.raises(TimeoutError):
                second[0].result(timeout=0.2)
        fetch(*arguments, **named)

    monkeypatch.setattr(datasets, "download_and_extract_archive", fetch_slowly)
    with ThreadPoolExecutor() as pool:
        first = open_dataset("CIFAR10", tmp_path / "new").test()
        assert np.array_equal(second[0].result().images, first.images)
    assert np.array_equal(first.images, open_dataset("CIFAR10", official_files).test().images)
    assert len(fetched) == 1


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_damaged_files_and_missing_class_names_are_fetched_again(official_files, name):
    """torchvision's check of whether anything is missing does not look at the class names."""
    official = getattr(torchvision_datasets, name)
    folder = official_files / official.base_folder
    (folder / official.meta["filename"]).unlink()
    assert open_dataset(name, official_files).class_names()[:3] == ("0", "1", "2")
    (folder / official.test_list[0][0]).write_bytes(b"damaged")
    assert len(open_dataset(name, official_files).test().images) == 2 * open_dataset(name, official_files).classes


def test_files_that_cannot_be_downloaded_are_one_line(official_files, monkeypatch):
    def broken(*_, **__):
        raise IncompleteRead(b"", 100)

    folder, fetch = official_files / "cifar-10-batches-py", datasets.download_and_extract_archive
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "url", torchvision_datasets.CIFAR10.url + ".gone")
    (official_files / torchvision_datasets.CIFAR10.filename).unlink()
    damaged, state = (folder / "test_batch").write_bytes, "cifar-10-batches-py: incomplete, or its md5 differs"
    for damage, fetched_by, fault in (
        (lambda: damaged(b"damaged"), fetch, state),
        ((folder / "test_batch").unlink, fetch, state),
        (lambda: damaged(b"damaged"), broken, "cannot be downloaded"),
        (lambda: shutil.rmtree(folder), fetch, "cifar-10-batches-py: missing"),
    ):
        damage()
        monkeypatch.setattr(datasets, "download_and_extract_archive", fetched_by)
        with pytest.raises(BadInput, match=fault) as refusal:
            open_dataset("CIFAR10", official_files).test()
        assert "\n" not in str(refusal.value)


def test_the_name_of_a_folder_is_the_directorys(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    monkeypatch.chdir(tmp_path / "train")
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, Path(".."), tmp_path / "link"):
        assert dataset_name("Folder", path) == f"Folder-{tmp_path.name}"
    assert dataset_name("Folder", Path("/")) == "Folder"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert dataset_name("Folder", tmp_path / "circle") == "Folder-circle"
    assert dataset_name("CIFAR10", tmp_path) == "CIFAR10"
    with pytest.raises(BadInput, match="the folder's name is not valid text"):
        dataset_name("Folder", tmp_path / "caf\udce9")


def test_shapes10_is_drawn_the_same_each_time_and_balanced(monkeypatch):
    assert shapes.COUNTS == {"train": 4000, "test": 1000}
    for split, count in (("train", 200), ("test", 100)):  # fewer are quicker
        monkeypatch.setitem(shapes.COUNTS, split, count)
    (images, labels), (again, _), (train, _) = shapes.draw("test"), shapes.draw("test"), shapes.draw("train")
    assert np.array_equal(images, again)
    assert images.dtype == np.uint8 and images.shape == (100, 3, 32, 32) and len(train) == 200
    assert np.bincount(labels).tolist() == [10] * 10
    assert open_dataset("Shapes10", Path()).class_names() == shapes.CLASSES
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in train}


def test_a_folder_without_locks_is_named(official_files, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BadInput, match="raw: its file system has no file locks"):
        open_dataset("CIFAR10", tmp_path / "raw").test()
