"""The released files' layouts, read and written (docs/method.md, section 1).

teacher   `features.<block>.<position>.*`, `classifier.<position>.*`
stage 1   `{"block-0": {...}, "block-1": {...}, "block-2": {...}}`, the states of B0, B1 and B2
stage 2   the state of the sequence (B0, B1, B2): `0.0.0.weight` .. `2.1.1.1.bias`

All in the serialisation from before PyTorch 1.6, wherever the tensors were.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.vgg import Architecture, BlockwiseVGG
from utils import files
from utils.errors import BadInput

State = dict[str, Tensor]
SCION_KEYS = ("block-0", "block-1", "block-2")


def read(path: Path) -> tuple[str, Any]:
    """("teacher", state), ("stage 1", [state of B0, B1, B2]) or ("stage 2", state of the sequence (B0, B1, B2)).

    Raises BadInput for a file that is none of these or holds a value that is not finite.
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
            if not torch.isfinite(value).all():
                raise BadInput(f"{path}: {key} has a value that is not finite")
    return kind, states if kind == "stage 1" else states[0]


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def read_teacher(path: Path, classes: int) -> BlockwiseVGG:
    """A teacher of any block-wise VGG, its depth and widths read off the file.

    Raises BadInput for a file that is not one, or that has another number of classes.
    """
    kind, state = read(path)
    if kind != "teacher":
        raise BadInput(f"{path}: is a student of {kind}, not a teacher")
    return teacher_from_state(state, path, classes)


def teacher_from_state(state: State, path: Path, classes: int) -> BlockwiseVGG:
    """The network whose state this is; `path` is for the message when there is none."""
    last = "classifier.2.weight" if "classifier.1.running_mean" in state else "classifier.1.weight"
    if last not in state:
        raise BadInput(f"{path}: has no {last}, so it is not a block-wise teacher")
    if len(state[last]) != classes:
        raise BadInput(f"{path}: has {len(state[last])} classes, the data set {classes}; name another --teacher")
    network = BlockwiseVGG(_architecture_of(state, path), classes)
    load(network, state, path)
    return network


def _architecture_of(state: State, path: Path) -> Architecture:
    blocks: dict[int, dict[int, int]] = {}
    for key, value in state.items():
        if match := re.fullmatch(r"features\.(\d+)\.(\d+)\.weight", key):
            blocks.setdefault(int(match[1]), {})[int(match[2])] = len(value)
    if sorted(blocks) != [0, 1, 2, 3, 4]:
        raise BadInput(f"{path}: has convolution blocks {sorted(blocks)}, a block-wise VGG has 0 to 4")
    widths = tuple(tuple(width for _, width in sorted(blocks[b].items())) for b in range(5))
    return Architecture(widths, len(state["classifier.0.weight"]), "classifier.1.running_mean" in state)


def load(network: nn.Module, state: State, path: Path) -> None:
    """`load_state_dict` with one line for the user when keys, shapes or types do not fit."""
    own = network.state_dict()
    if odd := sorted(set(own) ^ set(state)):
        raise BadInput(f"{path}: {odd[0]} is {'missing' if odd[0] in own else 'not expected'}; not of this layout")
    for key, value in state.items():
        if value.shape != own[key].shape or value.dtype != own[key].dtype:
            found, expected = (f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (value, own[key]))
            raise BadInput(f"{path}: {key} is {found}, expected {expected}")
    network.load_state_dict(state)


def on_cpu(network: nn.Module) -> State:
    """The state of a network, copied to the CPU in the plain memory layout."""
    return OrderedDict(
        (key, value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format))
        for key, value in network.state_dict().items()
    )


def write_teacher(teacher: BlockwiseVGG, path: Path) -> None:
    files.write_tensors(path, on_cpu(teacher), legacy=True)


def write_stage1(scions: list[nn.Sequential], path: Path) -> None:
    """[B0, B1, B2] as they stand after stage 1."""
    content = {key: on_cpu(scion) for key, scion in zip(SCION_KEYS, scions, strict=True)}
    files.write_tensors(path, content, legacy=True)


def write_stage2(state: State, path: Path) -> None:
    """The state of the sequence (B0, B1, B2)."""
    files.write_tensors(path, OrderedDict(state), legacy=True)
