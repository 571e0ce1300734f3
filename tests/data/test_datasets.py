import shutil

import numpy as np
import pytest
from PIL import Image
from small import pictures
from torchvision import datasets as torchvision_datasets

from data import shapes
from data.datasets import open_dataset
from utils.errors import BadInput


@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_official_format(official_files, name, classes):
    dataset = open_dataset(name, official_files)
    train, test = dataset.train(), dataset.test()
    assert dataset.classes == classes
    assert train.images.shape == (60 * classes, 3, 32, 32) and train.images.dtype == np.uint8
    assert test.images.shape == (2 * classes, 3, 32, 32)
    assert np.bincount(train.labels).tolist() == [60] * classes


def test_missing_files_are_fetched_and_checked(official_files, tmp_path):
    fetched = open_dataset("CIFAR10", tmp_path / "new").train()
    assert np.array_equal(fetched.images, open_dataset("CIFAR10", official_files).train().images)


def test_a_damaged_file_is_fetched_again(official_files):
    (official_files / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    assert open_dataset("CIFAR10", official_files).test().images.shape == (20, 3, 32, 32)


def test_files_that_cannot_be_had_are_one_line(official_files, monkeypatch):
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "url", torchvision_datasets.CIFAR10.url + ".gone")
    (official_files / torchvision_datasets.CIFAR10.filename).unlink()
    (official_files / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    with pytest.raises(BadInput, match="cifar-10-batches-py: its md5 differs") as refusal:
        open_dataset("CIFAR10", official_files).test()
    shutil.rmtree(official_files / "cifar-10-batches-py")
    with pytest.raises(BadInput, match="cifar-10-batches-py: missing"):
        open_dataset("CIFAR10", official_files).test()
    assert "\n" not in str(refusal.value)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(pictures(1, seed=label)[0].transpose(1, 2, 0)).resize((40, 50))
                picture.save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_folder(folder):
    dataset = open_dataset("Folder", folder)
    assert dataset.classes == 2
    assert dataset.train().images.shape == (6, 3, 32, 32)
    assert dataset.test().labels.tolist() == [0, 0, 1, 1]
    pixels = dataset.train().images / 255
    assert np.allclose(dataset.normalization.mean, pixels.mean((0, 2, 3)))
    assert np.allclose(dataset.normalization.std, pixels.std((0, 2, 3)))


def test_folder_faults(folder, tmp_path):
    (folder / "test" / "cow").mkdir()
    with pytest.raises(BadInput, match="'cow' is in only one of"):
        open_dataset("Folder", folder)
    (folder / "train" / "cow").mkdir()
    with pytest.raises(BadInput, match="cow"):
        open_dataset("Folder", folder)
    shutil.rmtree(folder / "train" / "cow")
    shutil.rmtree(folder / "test" / "cow")
    (folder / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"0\.png: cannot be read as a picture"):
        open_dataset("Folder", folder)
    with pytest.raises(BadInput, match="needs train/ and test/"):
        open_dataset("Folder", tmp_path / "nowhere")


def test_shapes10_is_drawn_the_same_each_time_and_balanced():
    (images, labels), (again, _) = shapes.draw("test"), shapes.draw("test")
    train, _ = shapes.draw("train")
    assert np.array_equal(images, again)
    assert images.dtype == np.uint8 and images.shape == (1000, 3, 32, 32) and len(train) >= 2000
    assert np.bincount(labels).tolist() == [100] * 10
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in train}
