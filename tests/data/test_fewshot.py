import pickle
import random

import numpy as np
import pytest

from data import fewshot
from data.datasets import open_dataset
from grafting.recipes import PUBLISHED_SHOTS
from utils import files
from utils.errors import BadInput

PUBLISHED_SHA256 = {
    ("CIFAR10", 1): "09d8f4b32fba03e40dfb4b416e2f008c8ec1181f36b016a07a8aca090e41e20c",
    ("CIFAR10", 10): "f69901e5aa14427e7e1d53f560c773d59887ab78020a9d0ad5133386b1807787",
    ("CIFAR10", 50): "9e0e26a7d09acf5fed788babc0eb9e45dd5aa0d1fadce803f4a83b2b681f25ce",
    ("CIFAR100", 1): "94dc4bf959fb02cb113c20cf7f508c0a3121995546ca792cb3ce623549910bc8",
    ("CIFAR100", 10): "67ea486f9121e3cc1cd46b2a258b54369e43884d4a5a6d8b1a333b559934cd31",
    ("CIFAR100", 50): "32e9a5b0053dc5d06e32f76d7bfe26b7360e29655461dd9e2647b5cbd3c89882",
}


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_subsets_of_the_official_files_have_the_published_bytes(real_data, name):
    dataset = open_dataset(name, real_data(name))
    drawn = {(name, n): fewshot.draw(dataset, n, dataset.subset_seed) for n in (1, 10, 50)}
    found = {key: files.sha256(images.tobytes()) for key, images in drawn.items()}
    assert found == {key: value for key, value in PUBLISHED_SHA256.items() if key[0] == name}


def test_subset_follows_the_released_draw(official_files):
    dataset = open_dataset("CIFAR10", official_files)
    train = dataset.train()
    random.seed(6)
    expected = []
    for label in range(10):
        members = [image for image, image_label in zip(train.images, train.labels, strict=True) if image_label == label]
        positions = list(range(len(members)))
        random.shuffle(positions)
        expected += [members[p] for p in positions[:4]]
    assert np.array_equal(fewshot.subset(dataset, 4, 6, official_files), np.stack(expected))


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_more_shots_contain_fewer(official_files, name):
    dataset = open_dataset(name, official_files)
    largest = fewshot.subset(dataset, 50, dataset.subset_seed, official_files).reshape(dataset.classes, 50, -1)
    for shots in PUBLISHED_SHOTS:
        images = fewshot.subset(dataset, shots, dataset.subset_seed, official_files).reshape(dataset.classes, shots, -1)
        assert np.array_equal(images, largest[:, :shots])


def test_file_is_a_pickled_array_under_the_released_name_with_another_seed_beside_it(official_files):
    dataset = open_dataset("CIFAR10", official_files)
    released, other = (fewshot.subset(dataset, 2, seed, official_files) for seed in (6, 7))
    stored = pickle.loads((official_files / "cifar10-random-2-per-class.pkl").read_bytes())
    assert stored.dtype == np.uint8 and stored.shape == (20, 3, 32, 32)
    assert np.array_equal(stored, released) and not np.array_equal(released, other)
    assert (official_files / "cifar10-random-2-per-class-seed7.pkl").exists()


def test_where_no_file_can_be_written_the_subset_is_drawn(official_files, tmp_path):
    dataset = open_dataset("CIFAR10", official_files)
    (tmp_path / "occupied").touch()
    folder = tmp_path / "occupied" / "raw"  # nothing can be written below a file
    drawn = fewshot.draw(dataset, 2, 6)
    assert np.array_equal(fewshot.subset(dataset, 2, 6, folder), drawn)
    with pytest.raises(BadInput, match=r"cifar10-random-2-per-class\.pkl: cannot be written"):
        fewshot.build(dataset, 2, 6, folder)
    with pytest.raises(BadInput, match="--nshot 100: class '0' has only 60 training images; give at most 60"):
        fewshot.subset(dataset, 100, 6, folder)


def test_a_file_in_place_is_used_and_not_replaced(official_files):
    """Neither one that holds the same, nor a subset of somebody's own."""
    dataset = open_dataset("CIFAR10", official_files)
    path = official_files / "cifar10-random-1-per-class.pkl"
    drawn = fewshot.draw(dataset, 1, 6)
    for images in (drawn, np.full_like(drawn, 7)):
        path.write_bytes(before := pickle.dumps(images, protocol=2))
        assert np.array_equal(fewshot.subset(dataset, 1, 6, official_files), images)
        if images is drawn:
            assert fewshot.build(dataset, 1, 6, official_files) == path
        else:
            with pytest.raises(BadInput, match=r"1-per-class\.pkl: holds another subset than the seed 6 draws"):
                fewshot.build(dataset, 1, 6, official_files)
        assert path.read_bytes() == before


class RunsCode:
    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (pickle.dumps(RunsCode()), "only a numpy array is admitted"),
        (pickle.dumps([1, 2]), "does not hold an array"),
        (pickle.dumps(np.array([None])), "not a pickled few-shot subset"),
        (pickle.dumps(np.zeros((10, 3, 32, 32), np.float32)), "float32"),
        (pickle.dumps(np.zeros((9, 3, 32, 32), np.uint8)), "(9, 3, 32, 32)"),
        (pickle.dumps(np.zeros((10, 3, 32, 32), np.uint8))[:-40], "damaged"),
        (b"", "damaged"),
    ],
)
def test_other_files_are_refused(official_files, content, fault, capsys):
    path = official_files / "cifar10-random-1-per-class.pkl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"cifar10-random-1-per-class\.pkl") as refusal:
        fewshot.subset(open_dataset("CIFAR10", official_files), 1, 6, official_files)
    assert fault in str(refusal.value) and "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_subsets_that_are_not_published_leave_no_file(dataset, tmp_path):
    fewshot.subset(dataset, 2, 6, tmp_path)
    assert not list(tmp_path.iterdir())
