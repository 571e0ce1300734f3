"""The released files' layouts, read and written (docs/method.md, section 1).

teacher   `features.<block>.<position>.*`, `classifier.<position>.*`
stage 1   `{"block-0": {...}, "block-1": {...}, "block-2": {...}}`, the states of B0, B1 and B2
stage 2   the state of the sequence (B0, B1, B2): `0.0.0.weight` .. `2.1.1.1.bias`

All in the serialisation from before PyTorch 1.6, saved from any device.
"""

from __future__ import annotations

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
SCION_KEYS = ("block-0", "block-1", "block-2")


def read(path: Path) -> tuple[str, Any]:
    """("teacher", state), ("stage 1", [state of B0, B1, B2]) or ("stage 2", state of the sequence (B0, B1, B2)).

    Raises BadInput for any other file, and for tensors that are not plain (`_is_plain`).
    """
    content = files.read_tensors(path, "a checkpoint")
    if _is_state(content) and "classifier.0.weight" in content:
        kind, states = "teacher", [content]
    elif isinstance(content, dict) and set(content) == set(SCION_KEYS):
        kind, states = "stage 1", [content[key] for key in SCION_KEYS]
    elif _is_state(content) and "0.0.0.weight" in content:
        kind, states = "stage 2", [content]
    else:
        raise BadInput(f"{path}: neither a block-wise teacher nor a student of stage 1 or 2")
    for state in states:
        if not _is_state(state):
            raise BadInput(f"{path}: holds something other than named tensors")
        for key, value in state.items():
            if not _is_plain(value):
                raise BadInput(f"{path}: {key} is not a dense tensor with all its values in the file")
    return kind, states if kind == "stage 1" else states[0]


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(
            isinstance(key, str) and key.isprintable() and isinstance(value, Tensor) for key, value in content.items()
        )
    )


def _is_plain(tensor: Tensor) -> bool:
    """Dense, not nested, not on the meta device, and with all its values in the file."""
    return (
        tensor.layout == torch.strided
        and not (tensor.is_nested or tensor.is_meta)
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


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
    _require_classes(_width(state, last, 2, path), classes, path)
    architecture = _architecture_of(state, path)
    with torch.device("meta"):  # inconsistent widths could need more memory than the machine has
        network = BlockwiseVGG(architecture, classes)
    require_fitting(network.state_dict(), state, path)
    network.to_empty(device="cpu")
    network.load_state_dict(state)
    return network


def require_classes(kind: str, state: Any, path: Path, classes: int) -> None:
    """Raise BadInput if a student of stage 1 or 2 has another number of classes. kind, state: from read()."""
    last = state[2].get("1.1.1.weight") if kind == "stage 1" else state.get("2.1.1.1.weight")
    if last is not None and last.ndim:
        _require_classes(len(last), classes, path)


def _require_classes(found: int, classes: int, path: Path) -> None:
    if found != classes:
        raise BadInput(f"{path}: has {found} classes, the data set {classes}; name its --dataset, or another file")


def _architecture_of(state: State, path: Path) -> Architecture:
    blocks: dict[int, dict[int, int]] = {}
    for key in state:
        if match := re.fullmatch(r"features\.([0-9]{1,3})\.([0-9]{1,3})\.weight", key):
            block, position = int(match[1]), int(match[2])
            width = blocks.setdefault(block, {})[position] = _width(state, key, 4, path)
            if block >= FIRST_GRAFTED and width < 2:
                raise BadInput(f"{path}: {key} has width {width}; the student is half as wide, so 2 is the least")
    if sorted(blocks) != [0, 1, 2, 3, 4]:
        raise BadInput(f"{path}: has convolution blocks {sorted(blocks)}, a block-wise VGG has 0 to 4")
    widths = tuple(tuple(width for _, width in sorted(blocks[b].items())) for b in range(5))
    return Architecture(widths, _width(state, "classifier.0.weight", 2, path), "classifier.1.running_mean" in state)


def _width(state: State, key: str, dimensions: int, path: Path) -> int:
    """Outputs of the layer with this weight. Raises BadInput unless it has this number of dimensions."""
    if state[key].ndim != dimensions or not state[key].numel():
        raise BadInput(f"{path}: {key} is {_described(state[key])}, expected {dimensions} dimensions, none of them 0")
    return len(state[key])


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def load(network: nn.Module, state: State, path: Path) -> None:
    """`load_state_dict`. Raises BadInput when keys, shapes or types do not fit or a value is not finite."""
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

    That of its file would not do. The released serialisation holds addresses in memory, so the same network gives
    another file each time it is written.
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
    """The states of B0, B1 and B2 after stage 1. scions: [B0, B1, B2]."""
    content = {key: on_cpu(scion) for key, scion in zip(SCION_KEYS, scions, strict=True)}
    files.write_tensors(path, content, legacy=True)


def write_stage2(state: State, path: Path) -> None:
    """The state of the sequence (B0, B1, B2)."""
    files.write_tensors(path, OrderedDict(state), legacy=True)
