"""Small things to test with: a narrow teacher, drawn images, a two-epoch recipe, official-format files."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torchvision import datasets as torchvision_datasets

from data.datasets import ImageDataset, LabelledImages
from data.views import Normalization
from grafting.recipes import CIFAR10, Recipe
from models.vgg import Architecture, BlockwiseVGG, frozen, initialize

ROOT = Path(__file__).resolve().parent.parent
TINY = Architecture(((4,), (4,), (8,), (8, 8), (8,)), hidden=8)
CLASSES = 3


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def weights(path: Path) -> dict[str, bytes]:
    """The bytes of every tensor in a checkpoint. (The file's own bytes hold addresses: its format wants them.)"""
    content = torch.load(path, weights_only=True)
    states = content if "block-0" in content else {"": content}
    return {f"{name} {key}": value.numpy().tobytes() for name, state in states.items() for key, value in state.items()}


@pytest.fixture
def teacher() -> BlockwiseVGG:
    """A frozen narrow teacher whose BatchNorm has seen something."""
    torch.manual_seed(0)
    network = initialize(BlockwiseVGG(TINY, CLASSES), torch.Generator().manual_seed(1))
    with torch.no_grad():
        for linear in (network.classifier[0], network.classifier[2]):
            linear.weight.mul_(100)  # logits well apart from 0
        network.train()
        network(torch.randn(64, 3, 32, 32))
    return frozen(network)


@pytest.fixture
def dataset() -> ImageDataset:
    """Three classes of random pictures, 12 for training and 20 for testing."""
    train = LabelledImages(pictures(12, 1), np.arange(12) % CLASSES)
    test = LabelledImages(pictures(20, 2), np.arange(20) % CLASSES)
    normalization = Normalization((0.5, 0.4, 0.6), (0.2, 0.25, 0.3))
    return ImageDataset("Tiny", CLASSES, normalization, 6, False, lambda: train, lambda: test)


@pytest.fixture
def recipe() -> Recipe:
    """CIFAR10's, with 3, 2, 2 and 2, 4 epochs."""

    def shortened(phases, epochs):
        return tuple(replace(phase, epochs=e) for phase, e in zip(phases, epochs, strict=True))

    return replace(CIFAR10, stage1=shortened(CIFAR10.stage1, (3, 2, 2)), stage2=shortened(CIFAR10.stage2, (2, 4)))


@pytest.fixture
def server(tmp_path):
    """The address of a web server on this machine that serves tmp_path."""
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        Thread(target=running.serve_forever, daemon=True).start()
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
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, official.base_folder)
        monkeypatch.setattr(official, "train_list", train)
        monkeypatch.setattr(official, "test_list", test)
        monkeypatch.setattr(official, "meta", {**official.meta, "md5": meta[1]})
        monkeypatch.setattr(official, "url", f"{server}/archives/{official.filename}")
        monkeypatch.setattr(official, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return source


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> Path:
    """The official files, where they lie at hand: in data/raw, or beside the repository."""
    if (ROOT / "data/raw/cifar-10-batches-py/test_batch").exists():
        return ROOT / "data/raw"
    unpack = ROOT.parent / "shared/data/unpack.py"
    if not unpack.exists():
        pytest.skip("the official CIFAR files are not at hand")
    target = tmp_path_factory.mktemp("raw")
    subprocess.run([sys.executable, str(unpack), str(target)], check=True, capture_output=True)
    return target
