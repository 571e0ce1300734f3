"""torchvision's own weights, from a server on this machine."""

from types import SimpleNamespace

import pytest
import torch

from models import checkpoints, pretrained
from models.networks import NETWORKS, resnet_of
from utils import files
from utils.errors import BadInput

NETWORK = NETWORKS["resnet18-resnet10"]


def test_weights_are_downloaded_once_checked_and_read(tmp_path, server, monkeypatch):
    made = tmp_path / "made.pth"
    state = resnet_of("resnet18", 1000).state_dict()
    old = {key: value for key, value in state.items() if "num_batches" not in key}  # as some of torchvision's files
    files.write_tensors(made, old)
    named = made.rename(tmp_path / f"resnet18-{files.sha256_of_file(made)[:8]}.pth")
    monkeypatch.setattr(pretrained, "weights_of", lambda _: SimpleNamespace(url=f"{server}/{named.name}"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = pretrained.file_of(NETWORK)
    assert path == tmp_path / "hub/checkpoints" / named.name
    pretrained.fetch(NETWORK, path)
    named.unlink()
    pretrained.fetch(NETWORK, path)  # it is there
    assert len(checkpoints.read_teacher(path, 1000, NETWORK).fc.weight) == 1000
    with pytest.raises(BadInput, match="has 1000 classes, the data set 10"):
        checkpoints.read_teacher(path, 10, NETWORK)


@pytest.mark.parametrize("content", [None, b"something else"])
def test_where_it_cannot_be_downloaded_the_line_says_which_file_to_put_where(tmp_path, server, monkeypatch, content):
    if content:
        (tmp_path / "resnet18-01234567.pth").write_bytes(content)
    url = f"{server}/resnet18-01234567.pth"
    monkeypatch.setattr(pretrained, "weights_of", lambda _: SimpleNamespace(url=url))
    path = tmp_path / "hub/resnet18-01234567.pth"
    with pytest.raises(BadInput, match=r"hub/resnet18-01234567.pth: missing, and http.*put that file there"):
        pretrained.fetch(NETWORK, path)
    assert not path.exists()


def test_the_papers_weights_are_meant():
    assert "resnet34-b627a593" in pretrained.weights_of(NETWORKS["resnet34-resnet18"]).url
    with pytest.raises(BadInput, match="torchvision has no weights of vgg16"):
        pretrained.weights_of(NETWORKS["vgg16"])
