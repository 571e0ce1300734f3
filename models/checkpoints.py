"""The released files' layouts, read and written (docs/method.md, section 1).

teacher   `features.<block>.<position>.*`, `classifier.<position>.*`
stage 1   `{"block-0": {...}, "block-1": {...}, ...}`, the states of B0, B1, ...
stage 2   the state of the sequence (B0, B1, ...): `0.0.0.weight` .. `2.1.1.1.bias`
plain     the state of a network of other classes than VGGs, such as torchvision's, or of a student without adapters

All are written in the serialisation from before PyTorch 1.6, and read in any, saved from any device, also as other
programs write them: the state under a key of a training checkpoint, or with DataParallel's `module.` before each name.
Values in float16 or bfloat16 become float32, which holds each of them exactly.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures import Architecture
from models.networks import NETWORKS, Networks
from models.vgg import BlockwiseVGG
from utils import files
from utils.errors import BadInput
from utils.text import say

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model", "net", "model_state_dict")  # where training checkpoints hold a network's state
RELEASED, OF_NETWORKS = "the released layout", "weights of the network that --networks names"
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
HALF_PRECISION = (torch.float16, torch.bfloat16)


def read(path: Path, report: Callable[[str], None] = say) -> tuple[str, Any]:
    """("network", state), ("stage 1", [state of B0, B1, ...]) or ("stage 2", state). BadInput for other files.

    Values in half precision are given in float32.

    report: called with a message if there was something around the state.
    """
    content = files.read_tensors(path, "a checkpoint")
    with files.reading(path, "a checkpoint"):
        kind, states, around = _unwrapped(content, path)
    if kind is None:
        raise BadInput(f"{path}: neither a network's weights nor a student of stage 1 or 2")
    if around:
        report(f"{path}: {', '.join(around)}")
    return kind, states if kind == "stage 1" else states[0]


def _unwrapped(content: Any, path: Path) -> tuple[str | None, list[State], list[str]]:
    """The kind, the states (several only of stage 1) and what was around them, for a message."""
    if not (isinstance(content, dict) and content):
        return None, [], []
    around, found = [], [key for key in WRAPPERS if _is_state(content.get(key))]
    if len(found) > 1:
        raise BadInput(f"{path}: holds states in the keys {', '.join(found)}; save one of them alone")
    for key in found:
        content = content[key]
        around.append(f"state_dict in key {key!r}")
    is_stage1 = set(content) == {f"block-{k}" for k in range(len(content))}
    states = [content[f"block-{k}"] for k in range(len(content))] if is_stage1 else [content]
    names = [name for state in states for name in state]
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None):
        states = [{name.removeprefix(prefix): value for name, value in state.items()} for state in states]
        names = [name.removeprefix(prefix) for name in names]
        around.append(f"names without {prefix!r}")
    if not all(isinstance(value, Tensor) for state in states for value in state.values()):
        return None, [], []
    states = [_in_float32(state) for state in states]
    kind = "stage 2" if all(name[0].isdecimal() for name in states[0]) else "network"
    return "stage 1" if is_stage1 else kind, states, around


def _in_float32(state: State) -> State:
    return {name: value.float() if value.dtype in HALF_PRECISION else value for name, value in state.items()}


def _is_state(value: Any) -> bool:
    """Whether this is a dictionary of tensors, or of those of stage 1."""
    return isinstance(value, dict) and bool(value) and all(isinstance(entry, Tensor | dict) for entry in value.values())


def read_teacher(
    path: Path, classes: int, networks: Networks = NETWORKS["vgg16"], report: Callable[[str], None] = say
) -> nn.Module:
    """The teacher in a file. The depth and widths of a VGG follow from the file, whichever is named. report: as `read`.

    Raises BadInput for a file that is not a teacher of these networks, has another number of classes, holds a value
    that is not finite.
    """
    kind, state = read(path, report)
    if kind == "stage 1" or (kind == "stage 2" and networks.is_vgg):  # other networks may have numbers for names
        raise BadInput(f"{path}: is a student of {kind}, not a teacher")
    if not networks.is_vgg:
        return network_from_state(networks.teacher, state, path, classes)
    network = vgg_from_state(state, path, classes)
    if not network.architecture.batchnorm:
        raise BadInput(f"{path}: is a student without adapters, not a teacher: its classifier has no BatchNorm")
    return network


def network_from_state(make: Callable[[int], nn.Module], state: State, path: Path, classes: int) -> nn.Module:
    """The network with this state. make: makes it for a number of classes. Raises BadInput where it does not fit."""
    network = make(classes)
    expected = network.state_dict()
    *_, (name, logits) = expected.items()  # the bias or weight of the last layer
    if logits.ndim and len(logits) == classes and name in state and state[name].ndim == logits.ndim:
        _require_equal_classes(len(state[name]), classes, path)
    counters = {key: value for key, value in expected.items() if key.endswith(".num_batches_tracked")}
    load(network, {**counters, **state}, path, OF_NETWORKS)  # files of old versions of PyTorch have no such counters
    return network


def vgg_from_state(state: State, path: Path, classes: int) -> BlockwiseVGG:
    """The network with this state: a teacher, or a student without adapters.

    path: for messages. Raises BadInput as `read_teacher`, but not for a student.
    """
    last = "classifier.2.weight" if "classifier.1.running_mean" in state else "classifier.1.weight"
    if last not in state:
        raise BadInput(f"{path}: has no {last}, so it is not a block-wise teacher")
    with files.reading(path, "a block-wise VGG"):
        _require_equal_classes(len(state[last]), classes, path)
        with torch.device("meta"):  # inconsistent widths could need more memory than the machine has
            network = BlockwiseVGG(_architecture_of(state, path), classes)
        require_fitting(network.state_dict(), state, path)
    network.to_empty(device="cpu").load_state_dict(state)
    return network


def require_classes(kind: str, state: Any, path: Path, classes: int) -> None:
    """Raise BadInput if a student of stage 1 or 2 has another number of classes. kind, state: from read()."""
    with files.reading(path, "a checkpoint"):
        state = state[-1] if kind == "stage 1" else state
        last = next((value for name, value in state.items() if name.endswith(".1.1.weight")), None)  # the classifier's
        if last is not None:
            _require_equal_classes(len(last), classes, path)


def _require_equal_classes(found: int, classes: int, path: Path) -> None:
    if found != classes:
        raise BadInput(f"{path}: has {found} classes, the data set {classes}; name its --dataset, or another file")


def _architecture_of(state: State, path: Path) -> Architecture:
    blocks: dict[int, list[int]] = {}
    for key, value in state.items():
        if match := re.fullmatch(r"features\.(\d{1,3})\.\d{1,3}\.weight", key):
            blocks.setdefault(int(match[1]), []).append(len(value))
    if sorted(blocks) != [0, 1, 2, 3, 4]:
        raise BadInput(f"{path}: has convolution blocks {sorted(blocks)}, a block-wise VGG has 0 to 4")
    widths = tuple(tuple(blocks[block]) for block in range(5))
    return Architecture(widths, len(state["classifier.0.weight"]), "classifier.1.running_mean" in state)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def load(network: nn.Module, state: State, path: Path, layout: str = RELEASED) -> None:
    """`load_state_dict`. Raises BadInput when keys, shapes or types do not fit or a value is not finite."""
    with files.reading(path, "a checkpoint"):
        require_fitting(network.state_dict(), state, path, layout)
    network.load_state_dict(state)


def require_fitting(expected: State, state: State, path: Path, layout: str = RELEASED) -> None:
    """Raise BadInput when keys, shapes or types differ from the expected ones or a value is not finite."""
    if differing := sorted(set(expected) ^ set(state)):
        fault = "missing" if differing[0] in expected else "not expected"
        raise BadInput(f"{path}: {differing[0]} is {fault}; not {layout}")
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
    """The state of a whole network, such as a teacher."""
    write_state(on_cpu(network), path)


def write_stage1(scions: list[nn.Sequential], path: Path) -> None:
    """The states of B0, B1, ... after stage 1."""
    files.write_tensors(path, {f"block-{k}": on_cpu(scion) for k, scion in enumerate(scions)}, legacy=True)


def write_state(state: State, path: Path) -> None:
    """A student's state: plain, or of the sequence (B0, B1, ...)."""
    files.write_tensors(path, OrderedDict(state), legacy=True)
