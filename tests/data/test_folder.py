import os
import shutil
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image
from small import pictures

from data import decoding, fewshot
from data.datasets import open_dataset
from data.pictures import find_files, from_picture
from utils.errors import BadInput


@pytest.fixture
def root(tmp_path):
    """Three training and two test pictures of cats and of dogs, none of them square."""
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(pictures(1, seed=label)[0].transpose(1, 2, 0)).resize((40, 50 + i))
                picture.save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def opened(root, size=32):
    """The data set, and the lines that the user gets."""
    lines = []
    return open_dataset("Folder", root, size, lines.append), lines


def refused(root, fault):
    with pytest.raises(BadInput, match=fault) as refusal:
        opened(root)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("size", "stored"), [(32, 32), (48, 55)])
def test_training_images_and_subsets_are_stored_with_what_their_views_need(root, size, stored):
    dataset, lines = opened(root, size)
    train, test = dataset.train(), dataset.test()
    assert dataset.classes == 2 and dataset.class_names() == ("cat", "dog") and dataset.image_size == size
    assert dataset.name == f"Folder-{root.name}"
    enlarged = ["4 of 4 test pictures have a side of less than 55 pixels and are enlarged"] if size > 32 else []
    assert lines == [f"Folder-{root.name}: 2 classes, 6 training and 4 test images", *enlarged]
    for split, found, side in (("train", train, stored), ("test", test, size)):
        paths = [path for name in ("cat", "dog") for path in find_files(root / split / name)]
        assert found.images.shape[2:] == (side, side)
        assert np.array_equal(found.images[:], np.stack([from_picture(path, path, size, side) for path in paths]))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and train.labels.dtype == np.int64
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert fewshot.subset(dataset, 2, 6, root).shape == (4, 3, stored, stored)
    if size == 32:
        expected = train.images.mean((0, 2, 3)) / 255, train.images.std((0, 2, 3)) / 255
    else:  # as torchvision's networks expect them
        expected = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert np.allclose([dataset.normalization.mean, dataset.normalization.std], expected)


def test_files_that_are_not_used_are_counted(root):
    for name in ("train/cat/0.gif", "train/cat/1.GIF", "test/dog/notes", "test/2.HEIC"):
        (root / name).write_bytes(b"")
    for name in ("train/lost.png", "test/lost.png"):
        shutil.copy(root / "train/cat/0.png", root / name)
    dataset, (first, second) = opened(root)
    assert first.endswith(": 2 classes, 6 training and 4 test images") and len(dataset.train().labels) == 6
    assert second.endswith(
        " .webp and lie in the folder of their class: 2 .gif, 1 .heic, 2 in no class, 1 no extension"
    )


@pytest.mark.parametrize("foreign", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "$RECYCLE.BIN"])
def test_what_other_programs_leave_is_no_data(root, foreign):
    """Whole folders, as a class and below one, and macOS's companions of files."""
    expected = opened(root)[0]
    for split in ("train", "test"):
        for place in (foreign, f"cat/{foreign}", f"cat/deeper/{foreign}"):
            shutil.copytree(root / split / "dog", root / split / place)
        for name in (".0.png", "._0.png", "cat/._0.png", "cat/.DS_Store"):
            (root / split / name).write_bytes(b"no picture")
    dataset, lines = opened(root)
    assert dataset.class_names() == ("cat", "dog")
    assert dataset.test().sha256() == expected.test().sha256() and dataset.train().sha256() == expected.train().sha256()
    assert lines[1].endswith(f" of their class: 2 folder {foreign}")


def test_a_pipe_is_no_picture_and_a_broken_link_is_named(root):
    os.mkfifo(root / "train/cat/pipe.png")
    assert len(opened(root)[0].train().labels) == len(find_files(root / "train"))
    (root / "train/cat/broken.png").symlink_to("nowhere")
    with pytest.raises(BadInput, match=r"train/cat/broken.png: is a broken link; remove it"):
        opened(root)


def test_all_faults_of_both_splits_are_one_line(root, monkeypatch):
    for name in ("train/cat/1.png", "train/dog/0.png", "test/cat/1.png"):
        (root / name).write_bytes(b"damaged")
    damaged = r"cannot be read[^;]*; replace[^;]*"
    refused(root, rf"^\S*train/cat/1\.png: {damaged}; \S*train/dog/0\.png: {damaged}; \S*test/cat/1\.png: {damaged}$")
    monkeypatch.setattr(decoding, "NAMED_FAULTS", 1)
    refused(root, rf"^\S*train/cat/1\.png: {damaged}; and 1 more; \S*test/cat/1\.png: {damaged}$")


def test_splits_that_do_not_fit_each_other(root, tmp_path):
    with pytest.raises(BadInput, match="holds train/ and test/, not CIFAR10; add --dataset Folder"):
        open_dataset("CIFAR10", root).train()
    refused(tmp_path / "nowhere", "needs train/ and test/")
    (root / "train/cow").mkdir()
    (root / "test/ibis").mkdir()
    refused(
        root,
        r"^\S*/test: has no folder 'cow', which train/ has; \S*/train: has no folder 'ibis', which test/ has;"
        r" \S*train/cow: no picture in it; each class needs one of .*; \S*test/ibis: no picture in it",
    )
    for split, gone in (("train", "cow"), ("test", "ibis"), ("train", "dog"), ("test", "dog")):
        shutil.rmtree(root / split / gone)
    refused(root, "train: needs a folder of pictures for each of two or more classes")  # a single one


def test_names_are_compared_composed(root):
    """A Mac decomposes the names that it copies."""
    name = "\u00e9pervier"
    (root / "train/cat").rename(root / "train" / name)
    (root / "test/cat").rename(root / "test" / normalize("NFD", name))
    assert opened(root)[0].class_names() == ("dog", name)
    shutil.copytree(root / "test" / normalize("NFD", name), root / "test" / name)
    refused(root, r"test: '(e\\u0301|\\xe9)pervier' and '(e\\u0301|\\xe9)pervier' are the same name, composed and")


@pytest.mark.parametrize("alike", ["cat ", "Cat", "ca\u00a0t"])
def test_the_nearest_name_is_shown_with_its_blanks(root, alike):
    (root / "test/cat").rename(root / "test" / alike)
    shown = repr(alike).replace("\\", "\\\\")
    refused(root, f"/test: has no folder 'cat', which train/ has; the nearest name there is {shown}; .*/train: has no")


@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_that_are_all_the_same_are_refused(root, split):
    """A drawing in white that is seen only by its transparency, and copies of one picture."""
    for shape, path in enumerate((root / split).rglob("*.png")):
        white = Image.new("RGBA", (32, 32), "white")
        white.putalpha(Image.linear_gradient("L").resize((32, 32)).rotate(90 * shape))
        white.save(path)
    refused(
        root, rf"/{split}: all its . pictures are the same in 32x32 pixels of RGB, what is transparent on white; give"
    )
    for path in (root / split).rglob("*.png"):
        Image.fromarray(pictures(1)[0].transpose(1, 2, 0)).save(path)
    refused(root, rf"/{split}: all its . pictures are the same")


@pytest.mark.parametrize("size", [32, 48])
def test_val_stands_for_a_missing_test(root, size):
    """As in ImageNet."""
    expected = opened(root, size)[0].test().sha256()
    shutil.copytree(root / "train", root / "val")
    dataset, lines = opened(root, size)
    assert dataset.test().sha256() == expected and lines[1] == f"{root}: holds test/ and val/; test/ is used"
    shutil.rmtree(root / "val")
    (root / "test").rename(root / "val")
    dataset, lines = opened(root, size)
    assert dataset.test().sha256() == expected and not any("val/" in line for line in lines)
    with pytest.raises(BadInput, match="holds train/ and val/, not CIFAR10"):
        open_dataset("CIFAR10", root).train()
    (root / "val/dog").rename(root / "val/Dog")
    refused(root, "/train: has no folder 'Dog', which val/ has; the nearest name there is 'dog'")


def test_at_another_size_only_what_is_needed_is_opened(root, monkeypatch):
    opened_files, upright = [], decoding.upright
    monkeypatch.setattr(decoding, "upright", lambda path, name: opened_files.append(path) or upright(path, name))
    dataset, _ = opened(root, 48)
    assert opened_files == []
    images = fewshot.subset(dataset, 2, 6, root)
    assert len(images) == len(opened_files) == 4 and {path.parts[-3] for path in opened_files} == {"train"}
    for _ in range(2):
        dataset.test().images[:]
    assert len(opened_files) == 8, "the test pictures are decoded once"
    assert dataset.train().decoded().images.shape == (6, 3, 55, 55)


def test_few_shot_images_that_are_all_the_same_are_refused(root):
    dataset, _ = opened(root, 48)
    for path in (root / "train").rglob("*.png"):
        Image.new("RGBA", (60, 60)).save(path)
    with pytest.raises(BadInput, match=r"--nshot 2: of Folder-.*, all its 4 pictures are the same in 55x55 pixels"):
        fewshot.subset(dataset, 2, 6, root)
    for path in (root / "test").rglob("*.png"):
        Image.new("RGB", (60, 60)).save(path)
    with pytest.raises(BadInput, match="/test: all its 4 pictures are the same in 48x48 pixels"):
        dataset.test()


def test_both_splits_are_checked_before_a_teacher_is_trained(root):
    dataset, _ = opened(root, 48)
    for name in ("train/cat/0.png", "test/dog/1.png"):
        (root / name).write_bytes(b"damaged")
    with pytest.raises(BadInput, match=r"train/cat/0\.png: cannot .*; \S*test/dog/1\.png: cannot"):
        dataset.decoded()
