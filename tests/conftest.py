"""Fixtures: the small things of small.py, a web server, files of the official formats, the real files."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import train_fskd  # noqa: F401  before torch is loaded: threads that wait then sleep, as in the program

# isort: split
import numpy as np
import pytest
import torch
from committed import ROOT
from small import pixel, pixels, short_recipe, small_dataset, small_teacher
from torchvision import datasets as torchvision_datasets

from experiments import figure, job, pictures, teachers
from grafting import mixed_views, recipes
from models import checkpoints


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks as small as these gain nothing from more threads, and beside another job they lose much."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as in the foreground: tests that a shell starts in the background inherit an ignored SIGINT.

    Afterwards both signals that the command line handles are handled as before.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Pictures of one pixel, except in tests that ask for `real_pictures`: drawing takes longer than small cells."""
    if "real_pictures" not in request.fixturenames:
        monkeypatch.setattr(figure, "draw", pixel)
        monkeypatch.setattr(pictures, "confusion_picture", pixels)


@pytest.fixture(autouse=True)
def short_training_from_the_teacher(monkeypatch):
    """On few mixed views, of which the last phase shows few."""
    monkeypatch.setattr(mixed_views, "COUNT", 480)
    monkeypatch.setattr(job, "LEAST_VIEWS", 20)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Files are not forced to the disk: no test cuts its power, and it takes longer than small cells."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def real_pictures():
    """Figures are drawn in this test."""


@pytest.fixture
def teacher():
    return small_teacher()


@pytest.fixture
def dataset():
    return small_dataset()


@pytest.fixture
def recipe():
    return short_recipe()


@pytest.fixture
def at_home(tmp_path, monkeypatch, dataset, recipe):
    """An empty working directory in which --dataset Folder is the small data set with the short recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "dataset_name", lambda name, path: name)
    monkeypatch.setattr(job, "open_dataset", lambda name, path, **_: dataset)
    monkeypatch.setitem(recipes.RECIPES, "Folder", recipe)
    monkeypatch.setattr(teachers, "like_guessing", lambda *_: None)  # its labels cannot be learned
    return tmp_path


@pytest.fixture
def with_teacher(at_home, teacher):
    """The same with a teacher in its default place."""
    checkpoints.write_network(teacher, at_home / "ckpt/teacher/vgg16-blockwise-folder.pth")
    return at_home


@pytest.fixture
def without_proxy(monkeypatch):
    """Servers on this machine are reached directly, whatever proxy the environment names."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def server(tmp_path, without_proxy):
    """The address of a web server on this machine that serves tmp_path."""
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def official_files(tmp_path, monkeypatch, server):
    """Small files of the official formats, their md5 in place of the published ones.

    Returns the folder that holds both; `archives` beside it holds what a download would bring.
    """
    random = np.random.default_rng(0)
    source = tmp_path / "archives"
    for official, classes, key in (
        (torchvision_datasets.CIFAR10, 10, "labels"),
        (torchvision_datasets.CIFAR100, 100, "fine_labels"),
    ):
        folder = source / official.base_folder
        folder.mkdir(parents=True)

        def write(name, content, folder=folder):
            (folder / name).write_bytes(pickle.dumps(content))
            return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

        def batch(name, count, key=key, classes=classes):
            labels = random.permutation(np.arange(count) % classes).tolist()
            return write(name, {"data": random.integers(0, 256, (count, 3072), np.uint8), key: labels})

        train = [batch(name, 60 * classes // len(official.train_list)) for name, _ in official.train_list]
        test = [batch(name, 2 * classes) for name, _ in official.test_list]
        meta = write(official.meta["filename"], {official.meta["key"]: [str(c) for c in range(classes)]})
        archive = source / official.filename
        with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
            tar.add(folder, official.base_folder)
        monkeypatch.setattr(official, "train_list", train)
        monkeypatch.setattr(official, "test_list", test)
        monkeypatch.setattr(official, "meta", {**official.meta, "md5": meta[1]})
        monkeypatch.setattr(official, "url", f"{server}/archives/{official.filename}")
        monkeypatch.setattr(official, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return source


@pytest.fixture(scope="session")
def real_data(tmp_path_factory):
    """A function that gives the folder with a data set's official files: data/raw, or one beside the repository.

    It skips the test if they are in neither; nothing is downloaded.
    """

    @cache
    def beside() -> Path:
        return unpacked("data", tmp_path_factory.mktemp("raw"))

    def folder_of(name: str) -> Path:
        official = getattr(torchvision_datasets, name)
        names = [name for name, _ in (*official.train_list, *official.test_list)] + [official.meta["filename"]]

        def is_in(folder: Path) -> bool:
            return all((folder / official.base_folder / name).exists() for name in names)

        if is_in(ROOT / "data/raw"):
            return ROOT / "data/raw"
        if not is_in(beside()):
            pytest.skip(f"the files of {name} are not available")
        return beside()

    return folder_of


@pytest.fixture(scope="session")
def real_teachers(tmp_path_factory) -> Path:
    """A folder with teachers of both CIFARs, if available beside the repository."""
    return unpacked("ckpt", tmp_path_factory.mktemp("teachers"))


def unpacked(what: str, target: Path) -> Path:
    """`target`, filled from the folder beside the repository; skips the test if there is none."""
    unpack = ROOT.parent / "shared" / what / "unpack.py"
    if not unpack.exists():
        pytest.skip(f"{unpack} is not available")
    subprocess.run([sys.executable, str(unpack), str(target)], check=True, capture_output=True)
    return target
