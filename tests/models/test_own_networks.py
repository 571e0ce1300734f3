"""A user's own networks: docs/mobilenet.py, and files that do not fit."""

import pytest
import torch
from committed import ROOT
from torch import nn

from grafting.scions import Adapter, scions_between
from models import own_networks
from models.networks import NETWORKS, frozen, output_shapes
from utils.errors import BadInput


def example() -> str:
    return (ROOT / "docs/mobilenet.py").read_text()


def read(tmp_path, code: str):
    path = tmp_path / "mine.py"
    path.write_text(code.replace("IMAGE_SIZE = 224", "IMAGE_SIZE = 32"))
    return own_networks.read(path)


def test_the_documented_example_is_read_and_has_adapters_on_both_sides(tmp_path):
    networks = read(tmp_path, example())
    own_networks.require_graftable(networks, 3, 64)
    shapes = output_shapes(frozen(networks.cut(networks.teacher(3))), 32)
    first, *_ = scions_between(networks, shapes, 32)
    assert isinstance(first[0], Adapter) and isinstance(first[-1], Adapter) and first[0].bias is None
    assert networks.grafted == range(1, 5) and networks.content["networks"] == "mine"


FAULTS = {
    "def cut(network)": ("def slice_up(network)", "has no function cut"),
    "GRAFTED = 1, 4  #": ("GIVEN = 1, 4  #", "AttributeError"),
    "GRAFTED = 1, 4 ": ("GRAFTED = (1,) ", "ValueError"),
    "GRAFTED = 1, 4": ("GRAFTED = 4, 1", "is not .first, last., blocks counted from 0"),
    "GRAFTED = 1": ("GRAFTED = '1'", "is not .first, last., blocks counted from 0"),
    "IMAGE_SIZE = 224": ("IMAGE_SIZE = '32'", "IMAGE_SIZE = '32' is no number of pixels"),
    "from torch import nn\n": ("from torch import nn\nraise SystemExit(7)\n", "SystemExit: 7"),
    "f = network.features": ("f = __import__('copy').deepcopy(network.features)", "do not share the network"),
    "import torch\n": ("import torches\n", "ModuleNotFoundError: No module named 'torches'"),
    "return nn.Sequential(": ("return list, (", "cut.. returns a tuple, not an nn.Sequential of blocks"),
    "f[:2], f[2:4]": ("f[:1], f[2:4]", "RuntimeError"),
    "head)\n": ("head, nn.Identity(), nn.ReLU(inplace=True))\n", "block 7 changes its input"),
    "f[14:18], ": ("f[14:18], nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(inplace=True)), ", "block 6 changes its"),
    "f[14:18], head)": ("f[14:18], head, nn.Softmax(1))", "do not compute what the network does"),
}


@pytest.mark.parametrize("right", FAULTS)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, right):
    wrong, fault = FAULTS[right]
    with pytest.raises(BadInput, match=fault) as error:
        read(tmp_path, example().replace(right, wrong))
    assert "\n" not in str(error.value) and "mine.py" in str(error.value)


def test_what_its_functions_raise_later_is_one_line(tmp_path):
    networks = read(tmp_path, example().replace("mobilenet_v2(num_classes=classes)", "{10: mobilenet_v2()}[classes]"))
    with pytest.raises(BadInput, match=r"mine\.py: KeyError: 3"):
        networks.teacher(3)


def test_networks_whose_shapes_come_from_another_file_are_others(tmp_path, monkeypatch):
    code, content = example().replace("width_mult=0.5", "width_mult=nn.SHARE"), []
    for share in (0.5, 0.75):
        monkeypatch.setattr(nn, "SHARE", share, raising=False)
        content.append(read(tmp_path, code).content)
    assert content[0] != content[1]


def tiny(stride: int):
    """teacher, student: three blocks; the stride of block 1."""

    class Tiny(nn.Module):
        def __init__(self, width: int, stride: int, classes: int):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, width, 3, stride, padding=1)
            self.c = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

        def forward(self, images):
            return self.c(self.b(self.a(images)))

    return (lambda classes: Tiny(8, 1, classes)), (lambda classes: Tiny(8, stride, classes))


def test_blocks_that_do_not_fit_are_named_with_their_shapes():
    def networks(stride, first=1, last=1):
        teacher, student = tiny(stride)
        cut = lambda network: nn.Sequential(network.a, network.b, network.c)  # noqa: E731
        return own_networks.Networks("tiny", teacher, student, cut, first, last, 32)

    own_networks.require_graftable(networks(1), 3, 32)
    with pytest.raises(BadInput, match=r"block 2 the teacher has \(8, 32, 32\), the student \(8, 16, 16\)"):
        own_networks.require_graftable(networks(2), 3, 32)
    with pytest.raises(BadInput, match="blocks 1-3 are grafted, there are 0-2"):
        own_networks.require_graftable(networks(1, last=3), 3, 32)
    with pytest.raises(BadInput, match="--networks vgg16 at --image_size 64: cannot be computed"):
        own_networks.require_graftable(NETWORKS["vgg16"], 3, 64)
    with torch.device("meta"), pytest.raises(BadInput, match="--grafted 3-6: vgg16 has the blocks 0-5"):
        NETWORKS["vgg16"].grafted_at(3, 6)
