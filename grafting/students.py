"""The student as one plain network: the teacher's blocks, and the scions' student blocks in the place of the others.

s2t behind a block and t2s in front of the next one are one linear map of channels. Where `Networks.absorb` can put that
map into the next block, the student has no adapter left, computes the same logits, and has the keys of its own class: a
ResNet18 from a ResNet34 is torchvision's.
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from grafting.scions import Adapter, scions_between
from grafting.teacher import FrozenTeacher
from models import checkpoints
from models.checkpoints import State
from models.networks import Networks, frozen, output_shapes
from utils.errors import BadInput
from utils.precision import arithmetic

TOLERANCE = 1e-4  # of the largest logit; float32 rounds to about 1e-6


def graft_of(teacher: FrozenTeacher, scions: nn.Sequential) -> nn.Sequential:
    """The whole student with its adapters: normalised images -> logits."""
    networks = teacher.networks
    return nn.Sequential(*teacher.blocks[: networks.first], *scions, *teacher.blocks[networks.last + 1 :])


def layers_of(networks: Networks, teacher: nn.Sequential, scions: Iterable[nn.Sequential]) -> list[nn.Module]:
    """The whole student's blocks and adapters, front to back. teacher: its blocks."""
    behind = teacher[networks.last + 1 :]
    return [*teacher[: networks.first], *(layer for scion in scions for layer in scion), *behind]


@torch.no_grad()
def without_adapters(
    networks: Networks, teacher: nn.Sequential, scions: Sequence[nn.Sequential]
) -> nn.Sequential | None:
    """The blocks of the whole student, frozen copies; None where an adapter cannot be put into a block.

    teacher: its blocks. scions: one for each grafted block, with or without adapters.
    """
    blocks, behind = [], None  # behind: the map of channels behind the last block, where there is one
    for layer in layers_of(networks, teacher, scions):
        if isinstance(layer, Adapter):
            if layer.bias is not None:
                return None
            matrix = layer.weight.flatten(1).double()
            behind = matrix if behind is None else matrix @ behind
            continue
        blocks.append(frozen(copy.deepcopy(layer)))
        if behind is not None and not (networks.absorb and networks.absorb(blocks[-1], behind)):
            return None
        behind = None
    return nn.Sequential(*blocks)


def plain_keys(networks: Networks, classes: int) -> dict[str, str]:
    """By the key in the sequence of a student's blocks ("1.0.conv1.weight"), the key in a network's own state.

    For a grafted block it is the student network's key, for another block the teacher's.
    """
    names = {}
    for is_student, make in enumerate((networks.teacher, networks.student)):
        with networks.outlined():
            network = make(classes)
        key_of = {id(tensor): key for key, tensor in network.state_dict(keep_vars=True).items()}
        for index, block in enumerate(networks.cut(network)):
            if is_student == (index in networks.grafted):
                local = block.state_dict(keep_vars=True)
                names |= {f"{index}.{key}": key_of[id(tensor)] for key, tensor in local.items()}
    return names


def is_plain_state(networks: Networks, state: State, classes: int) -> bool:
    """Whether a state has the keys of the teacher, or of a student without adapters."""
    with networks.outlined():
        of_teacher = networks.teacher(classes).state_dict().keys()
    return state.keys() in (of_teacher, set(plain_keys(networks, classes).values()))


def empty_student(networks: Networks, classes: int, image_size: int) -> nn.Sequential:
    """Blocks of a student without adapters, for a state to be loaded into.

    Where no map can be put into a block, only a method without adapters makes such a student.
    """
    with networks.outlined():
        teacher = networks.cut(frozen(networks.teacher(classes)))
        scions = scions_between(networks, output_shapes(teacher, image_size), image_size)
        blocks = without_adapters(networks, teacher, scions)
        if blocks is None:
            student = networks.cut(frozen(networks.student(classes)))
            replaced = [student[block] for block in networks.grafted]
            blocks = nn.Sequential(*teacher[: networks.first], *replaced, *teacher[networks.last + 1 :])
    return blocks.to_empty(device="cpu") if next(blocks.parameters()).is_meta else blocks


def load_plain(networks: Networks, blocks: nn.Sequential, state: State, path: Path, classes: int) -> nn.Sequential:
    """Load a plain state into a student's blocks. Raises BadInput where it does not fit. path: for messages."""
    names = plain_keys(networks, classes)
    checkpoints.require_fitting(
        {names[key]: value for key, value in blocks.state_dict().items()}, state, path, checkpoints.OF_NETWORKS
    )
    blocks.load_state_dict({key: state[name] for key, name in names.items()})
    return frozen(blocks)


def plain_student(teacher: FrozenTeacher, scions: nn.Sequential) -> nn.Sequential | None:
    """The blocks of the whole student without adapters; None where it keeps them.

    Raises BadInput if they are not the student's function, as with a wrong absorb() of a user's own file.
    """
    blocks = without_adapters(teacher.networks, teacher.blocks, scions)
    if blocks is not None and not (error := difference(teacher, scions, blocks)) <= TOLERANCE:
        raise BadInput(
            f"--networks {teacher.networks.base_name}: absorb() is not exact: without adapters, the student's logits"
            f" differ by {error:.1e} of the largest; let it return False where a map cannot be put in"
        )
    return blocks


def write(teacher: FrozenTeacher, scions: nn.Sequential, path: Path) -> None:
    """Write a student: its plain state, or, where it keeps its adapters as a VGG does, the sequence of its scions.

    Raises BadInput, and writes nothing, if the plain network is not the student's function.
    """
    blocks = plain_student(teacher, scions)
    if blocks is None:
        checkpoints.write_state(checkpoints.on_cpu(scions), path)
        return
    names = plain_keys(teacher.networks, teacher.classes)
    checkpoints.write_state({names[key]: value for key, value in checkpoints.on_cpu(blocks).items()}, path)


@torch.no_grad()
def difference(teacher: FrozenTeacher, scions: nn.Sequential, blocks: nn.Sequential) -> float:
    """The largest difference of logits between a student with adapters and its plain blocks, over the largest logit.

    Measured on normalised random images.
    """
    size, was_training = teacher.image_size, scions.training
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)).to(teacher.device)
    with arithmetic("float32", teacher.device):  # whatever the run's precision is, which rounds above the tolerance
        ours: Tensor = graft_of(teacher, scions.eval())(images)
        plain = blocks(images)
    scions.train(was_training)
    return ((ours - plain).abs().max() / ours.abs().max()).item()
