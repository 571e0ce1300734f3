"""Networks from a user's own Python file (docs/networks.md), and the check that a pair can be grafted."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from models.networks import NETWORKS, Networks, frozen, output_shapes
from models.teacher_recipe import ONE_CYCLE
from utils import files
from utils.errors import BadInput

FUNCTIONS = ("teacher", "student", "cut")


def read(path: Path) -> Networks:
    """The networks that a file defines: teacher(classes), student(classes), cut(network), and GRAFTED = (first, last).

    IMAGE_SIZE (pixels, default 224) and absorb(block, matrix) (models/resnet.py) are optional. The file is run, as any
    Python file that is imported. Raises BadInput where it cannot be, or where something is missing.
    """
    files.require_there(path)
    if path.stem in NETWORKS:
        raise BadInput(f"--networks {path}: {path.stem} is the name of others; rename the file")
    spec = importlib.util.spec_from_file_location(f"networks_of_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    _calling(path, lambda: spec.loader.exec_module(module))
    if missing := [name for name in FUNCTIONS if not callable(getattr(module, name, None))]:
        raise BadInput(f"--networks {path}: has no function {', '.join(missing)}; docs/networks.md has an example")
    first, last = _calling(path, lambda: _first_and_last(module))
    image_size = getattr(module, "IMAGE_SIZE", 224)
    if not isinstance(image_size, int) or image_size < 8:
        raise BadInput(f"--networks {path}: IMAGE_SIZE = {image_size!r} is no number of pixels; give at least 8")
    absorb = getattr(module, "absorb", None)
    networks = Networks(
        path.stem, *(_guarded(path, getattr(module, name)) for name in FUNCTIONS), first, last,
        image_size, teacher_recipe=ONE_CYCLE, absorb=absorb and _guarded(path, absorb),
        is_own=True,
    )  # fmt: skip
    _calling(path, lambda: _require_same_function(networks, classes=10))
    return replace(networks, content={"networks": path.stem, "networks_sha256": _sha256(path, networks)})


def _first_and_last(module: ModuleType) -> tuple[int, int]:
    first, last = module.GRAFTED
    if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last):
        raise ValueError(f"GRAFTED = ({first}, {last}) is not (first, last), blocks counted from 0")
    return first, last


def _guarded(path: Path, function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function; what it raises becomes BadInput."""
    return lambda *arguments: _calling(path, lambda: function(*arguments))


def _sha256(path: Path, networks: Networks) -> str:
    """Of the file, and of the names and shapes of both networks, which may be made by other files that it imports."""
    shapes = [
        {name: tuple(value.shape) for name, value in make(10).state_dict().items()}
        for make in (networks.teacher, networks.student)
    ]
    return files.sha256(path.read_bytes() + repr(shapes).encode())


def _calling(path: Path, call: Callable[[], object]) -> object:
    """What the user's code gives. It may raise anything, which becomes BadInput."""
    try:
        return call()
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"--networks {path}: {type(error).__name__}: {reason}") from error


@torch.no_grad()
def _require_same_function(networks: Networks, classes: int) -> None:
    """Raise BadInput unless cut() gives what each network computes, and no block changes its input."""
    images = torch.randn(2, 3, networks.image_size, networks.image_size, generator=torch.Generator().manual_seed(0))
    for make in (networks.teacher, networks.student):
        network = frozen(make(classes))
        blocks = networks.cut(network)
        if not isinstance(blocks, nn.Sequential):
            kind = type(blocks).__name__
            raise BadInput(f"--networks {networks.name}.py: cut() returns a {kind}, not an nn.Sequential of blocks")
        if not _tensors(blocks) <= _tensors(network):
            raise BadInput(f"--networks {networks.name}.py: the blocks of cut() do not share the network's parameters")
        expected, features = network(images.clone()), images
        for index, block in enumerate(blocks):
            before = features._version  # which every operation in place counts up, also one that changes no value
            outputs = block(features)
            if features._version != before:
                raise BadInput(
                    f"--networks {networks.name}.py: block {index} changes its input; let it begin without inplace=True"
                )
            features = outputs
        if not torch.equal(features, expected):
            raise BadInput(f"--networks {networks.name}.py: the blocks of cut() do not compute what the network does")


def _tensors(network: nn.Module) -> set[int]:
    return {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}


def require_graftable(networks: Networks, classes: int, image_size: int) -> None:
    """Raise BadInput, which names blocks and shapes, unless the student's blocks can replace the teacher's.

    Both networks are made and their shapes computed for one image of this size.
    """
    about = f"--networks {networks.name} at --image_size {image_size}"
    teacher, student = (_blocks(networks, make, classes) for make in (networks.teacher, networks.student))
    if len(teacher) != len(student):
        raise BadInput(f"{about}: the teacher has {len(teacher)} blocks, the student {len(student)}")
    if not 0 <= networks.first <= networks.last < len(teacher):
        raise BadInput(f"{about}: blocks {networks.first}-{networks.last} are grafted, there are 0-{len(teacher) - 1}")
    try:
        ours, theirs = output_shapes(student, image_size), output_shapes(teacher, image_size)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise BadInput(f"{about}: cannot be computed ({reason}); choose another size, or leave it out") from error
    if theirs[-1] != (classes,):
        raise BadInput(f"{about}: the teacher gives {theirs[-1]} for an image, not logits of {classes} classes")
    for start in range(networks.first, networks.last + 2):
        only_channels_differ = len(ours[start]) == 3 and ours[start][1:] == theirs[start][1:]
        if ours[start] != theirs[start] and not only_channels_differ:
            raise BadInput(
                f"{about}: in front of block {start} the teacher has {theirs[start]}, the student {ours[start]};"
                " only the number of channels of a feature map may differ"
            )


def _blocks(networks: Networks, make: Callable[[int], nn.Module], classes: int) -> nn.Sequential:
    """The blocks of a new network."""
    with networks.outlined():
        return networks.cut(frozen(make(classes)))
