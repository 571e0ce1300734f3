"""The released files' layouts, read and written (docs/method.md, section 1).

teacher   `features.<block>.<position>.*`, `classifier.<position>.*`
stage 1   `{"block-0": {...}, "block-1": {...}, ...}`, the states of B0, B1, ...
stage 2   the state of the sequence (B0, B1, ...): `0.0.0.weight` .. `2.1.1.1.bias`

All in the serialisation from before PyTorch 1.6, saved from any device.
"""

import hashlib
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures import FIRST_GRAFTED, Architecture
from models.vgg import BlockwiseVGG
from utils import files
from utils.errors import BadInput

State = dict[str, Tensor]


def read(path: Path) -> tuple[str, Any]:
    """("teacher", state), ("stage 1", [state of B0, B1, ...]) or ("stage 2", state). BadInput for other files."""
    content = files.read_tensors(path, "a checkpoint")
    if isinstance(content, dict):
        if content and set(content) == {f"block-{k}" for k in range(len(content))}:
            return "stage 1", [content[f"block-{k}"] for k in range(len(content))]
        if "classifier.0.weight" in content:
            return "teacher", content
        if "0.0.0.weight" in content:
            return "stage 2", content
    raise BadInput(f"{path}: neither a block-wise teacher nor a student of stage 1 or 2")


def read_teacher(path: Path, classes: int) -> BlockwiseVGG:
    """The teacher in a file, any block-wise VGG; its depth and widths follow from the file.

    Raises BadInput for a file that is not a teacher, has another number of classes, holds a value that is not finite,
    or whose blocks are too narrow for a student of half their width.
    """
    kind, state = read(path)
    if kind != "teacher":
        raise BadInput(f"{path}: is a student of {kind}, not a teacher")
    network = teacher_from_state(state, path, classes)
    if not network.architecture.batchnorm:
        raise BadInput(f"{path}: is a student without adapters, not a teacher: its classifier has no BatchNorm")
    return network


def teacher_from_state(state: State, path: Path, classes: int) -> BlockwiseVGG:
    """The network with this state: a teacher, or a student without adapters.

    path: for messages. Raises BadInput as `read_teacher`, but not for a student.
    """
    last = "classifier.2.weight" if "classifier.1.running_mean" in state else "classifier.1.weight"
    if last not in state:
        raise BadInput(f"{path}: has no {last}, so it is not a block-wise teacher")
    with files.reading(path, "a block-wise VGG"):
        _require_classes(len(state[last]), classes, path)
        with torch.device("meta"):  # inconsistent widths could need more memory than the machine has
            network = BlockwiseVGG(_architecture_of(state, path), classes)
        require_fitting(network.state_dict(), state, path)
    network.to_empty(device="cpu").load_state_dict(state)
    return network


def require_classes(kind: str, state: Any, path: Path, classes: int) -> None:
    """Raise BadInput if a student of stage 1 or 2 has another number of classes. kind, state: from read()."""
    with files.reading(path, "a checkpoint"):
        last = state[-1].get("1.1.1.weight") if kind == "stage 1" else state.get("2.1.1.1.weight")
        if last is not None:
            _require_classes(len(last), classes, path)


def _require_classes(found: int, classes: int, path: Path) -> None:
    if found != classes:
        raise BadInput(f"{path}: has {found} classes, the data set {classes}; name its --dataset, or another file")


def _architecture_of(state: State, path: Path) -> Architecture:
    blocks: dict[int, list[int]] = {}
    for key, value in state.items():
        if match := re.fullmatch(r"features\.(\d{1,3})\.\d{1,3}\.weight", key):
            blocks.setdefault(int(match[1]), []).append(len(value))
            if int(match[1]) >= FIRST_GRAFTED and len(value) < 2:
                raise BadInput(f"{path}: {key} has width {len(value)}; the student is half as wide, so 2 is the least")
    if sorted(blocks) != [0, 1, 2, 3, 4]:
        raise BadInput(f"{path}: has convolution blocks {sorted(blocks)}, a block-wise VGG has 0 to 4")
    widths = tuple(tuple(blocks[block]) for block in range(5))
    return Architecture(widths, len(state["classifier.0.weight"]), "classifier.1.running_mean" in state)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def load(network: nn.Module, state: State, path: Path) -> None:
    """`load_state_dict`. Raises BadInput when keys, shapes or types do not fit or a value is not finite."""
    with files.reading(path, "a checkpoint"):
        require_fitting(network.state_dict(), state, path)
    network.load_state_dict(state)


def require_fitting(expected: State, state: State, path: Path) -> None:
    """Raise BadInput when keys, shapes or types differ from the expected ones or a value is not finite."""
    if differing := sorted(set(expected) ^ set(state)):
        fault = "missing" if differing[0] in expected else "not expected"
        raise BadInput(f"{path}: {differing[0]} is {fault}; not the released layout")
    for key, value in state.items():
        if value.shape != expected[key].shape or value.dtype != expected[key].dtype:
            raise BadInput(f"{path}: {key} is {_described(value)}, expected {_described(expected[key])}")
        if not value.isfinite().all():
            raise BadInput(f"{path}: {key} has a value that is not finite")


def on_cpu(network: nn.Module) -> State:
    """The state of a network, copied to the CPU in the plain memory layout."""
    return OrderedDict(
        (key, value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format))
        for key, value in network.state_dict().items()
    )


def weights_sha256(network: nn.Module) -> str:
    """What a network is known by: sha256 of the names and values of its state.

    The released serialisation holds addresses in memory, so two files of one network differ.
    """
    digest = hashlib.sha256()
    for name, value in on_cpu(network).items():
        digest.update(f"{name} {_described(value)} ".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def write_network(network: nn.Module, path: Path) -> None:
    """The state of a whole network: a teacher, or a student without adapters."""
    files.write_tensors(path, on_cpu(network), legacy=True)


def write_stage1(scions: list[nn.Sequential], path: Path) -> None:
    """The states of B0, B1, ... after stage 1."""
    files.write_tensors(path, {f"block-{k}": on_cpu(scion) for k, scion in enumerate(scions)}, legacy=True)


def write_stage2(state: State, path: Path) -> None:
    """The state of the sequence (B0, B1, ...)."""
    files.write_tensors(path, OrderedDict(state), legacy=True)
