"""Networks: a teacher and the student whose blocks are grafted into it.

To add a pair, write a function that cuts both networks into blocks, and an entry in NETWORKS. models/own_networks.py
reads a pair from a user's own file.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models.resnet import BasicBlock

from data.views import CIFAR_SIZE
from models import resnet
from models.architectures import (
    ARCHITECTURES,
    CLASSIFIER,
    FIRST_GRAFTED,
    LAST_GRAFTED,
    RESNETS,
    STUDENT_WIDTH,
    TRAINABLE,
    Architecture,
    student_of,
)  # fmt: skip
from models.teacher_recipe import ONE_CYCLE, TeacherRecipe
from models.vgg import BlockwiseVGG, cut
from utils.errors import BadInput

FROM_TEACHER = "-from-teacher"


@dataclass(frozen=True)
class Networks:
    """A teacher and its student, which are cut into the same number of blocks.

    teacher, student: make the network for a number of classes. cut: returns the blocks of either network in a sequence,
    which shares its parameters and computes what it computes. first, last: the blocks that student blocks replace; all
    others of the student are the teacher's. image_size: pixels on each side of an image, where the user names no other.

    teacher_recipe: how a teacher is trained; None: as the recipes of the data sets say, which are for VGGs.
    pretrained: the teacher's name in torchvision, which has weights for ImageNet. absorb: puts a linear map of channels
    in front of a block into the block (models/resnet.py). copy_block: puts the teacher's weights into a student block.
    None: there is no rule for it. start: "fresh", or "teacher" where student blocks begin with the teacher's weights
    (grafting/start.py). vgg: what a block-wise VGG's teacher is, whose files have the released layout; None for others.
    student_width: the share of a VGG's channels in grafted blocks. is_own: of a user's own file. content: what
    identifies the networks in records and settings.
    """

    name: str
    teacher: Callable[[int], nn.Module]
    student: Callable[[int], nn.Module]
    cut: Callable[[nn.Module], nn.Sequential]
    first: int
    last: int
    image_size: int = CIFAR_SIZE
    teacher_recipe: TeacherRecipe | None = None
    pretrained: str | None = None
    absorb: Callable[[nn.Module, Tensor], bool] | None = None
    copy_block: Callable[[nn.Module, nn.Module], None] | None = None
    start: str = "fresh"
    vgg: Architecture | None = None
    student_width: float = STUDENT_WIDTH
    is_own: bool = False
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_vgg(self) -> bool:
        return self.vgg is not None

    @property
    def begins_fitted(self) -> bool:
        """Whether student blocks begin fitted to the teacher's (grafting/start.py)."""
        return self.is_vgg and self.start == "teacher"

    @property
    def copies_blocks(self) -> bool:
        """Whether student blocks begin as copies of the teacher's."""
        return not self.is_vgg and self.start == "teacher"

    @property
    def grafted(self) -> range:
        """The blocks that are replaced."""
        return range(self.first, self.last + 1)

    def outlined(self) -> AbstractContextManager:
        """Within it, networks are made on the meta device, without values; those of a user's own file have values."""
        return nullcontext() if self.is_own else torch.device("meta")

    def started_from(self, start: str) -> "Networks":
        """The same networks with "fresh" student blocks, or with those that begin from the "teacher"'s weights.

        Raises BadInput where there is no rule for that.
        """
        if start == self.start:
            return self
        if self.copy_block is None and not self.is_vgg:
            raise BadInput(f"--start {start}: there is no rule for {self.name}; leave it out")
        return replace(self, name=f"{self.name}{FROM_TEACHER}", start=start)

    @property
    def trains_batchnorm(self) -> bool:
        """Whether BatchNorm of student blocks trains on batches; a copy of the teacher's has statistics already."""
        return self.start == "fresh"

    @property
    def base_name(self) -> str:
        """The name without the start, which a student's record does not name."""
        return self.name.removesuffix(FROM_TEACHER)

    def of(self, teacher: nn.Module) -> "Networks":
        """The networks of a teacher from a file; the depth and widths of a VGG follow from the file."""
        if not self.is_vgg:
            return self
        return vgg(teacher.architecture, self.grafted, self.student_width).started_from(self.start)

    def grafted_at(self, first: int, last: int) -> "Networks":
        """The same networks with only these blocks replaced. Raises BadInput for blocks that the student cannot."""
        if not self.graftable[0] <= first <= last <= self.graftable[-1]:
            there = f"{self.graftable[0]}-{self.graftable[-1]}"
            raise BadInput(f"--grafted {first}-{last}: {self.name} has the blocks {there} to graft")
        if range(first, last + 1) == self.grafted:
            return self
        if self.is_vgg:
            return vgg(self.vgg, range(first, last + 1), self.student_width).started_from(self.start)
        return replace(self, name=f"{self.name}-blocks{first}-{last}", first=first, last=last)

    @property
    def graftable(self) -> range:
        """The blocks that may be replaced: all of a VGG."""
        return range(CLASSIFIER + 1) if self.is_vgg else self.grafted

    def at_width(self, share: float) -> "Networks":
        """The same networks with another share of the teacher's channels in grafted blocks. BadInput but for VGGs."""
        if share == self.student_width:
            return self
        if not self.is_vgg:
            raise BadInput(f"--student_width: is for VGGs; the student of {self.name} has its own widths; leave it out")
        return vgg(self.vgg, self.grafted, share).started_from(self.start)


def vgg(
    teacher: Architecture,
    grafted: range = range(FIRST_GRAFTED, LAST_GRAFTED + 1),
    share: float = STUDENT_WIDTH,
) -> Networks:
    """A block-wise VGG and its student, whose grafted blocks have a share of the width.

    Raises BadInput where no channel is left.
    """
    narrow = student_of(teacher, share, grafted)
    if not all(width for block in narrow.widths for width in block):
        raise BadInput(f"--student_width {share:g}: leaves a block without channels; give more")
    name = next((name for name, known in ARCHITECTURES.items() if known == teacher), "vgg")
    if grafted != range(FIRST_GRAFTED, LAST_GRAFTED + 1):
        name += f"-blocks{grafted[0]}-{grafted[-1]}"
    if share != STUDENT_WIDTH:
        name += f"-width{share:g}"
    make, student = partial(BlockwiseVGG, teacher), partial(BlockwiseVGG, narrow)
    about = {"vgg": teacher, "student_width": share, "content": {"widths": teacher.widths}}
    return Networks(name, make, student, cut, grafted[0], grafted[-1], **about)


def resnet_of(name: str, classes: int) -> nn.Module:
    """A ResNet of torchvision by its name, without weights."""
    if name == "resnet10":
        return torchvision_models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
    return torchvision_models.get_model(name, weights=None, num_classes=classes)


def resnets(name: str) -> Networks:
    """Two ResNets, whose four stages are grafted; the stem and the head are the teacher's."""
    teacher, student = RESNETS[name]
    made = partial(resnet_of, teacher), partial(resnet_of, student)
    about = {
        "image_size": 224,
        "pretrained": teacher,
        "absorb": resnet.absorb,
        "copy_block": resnet.copy_block,
        "content": {"networks": name},
    }
    return Networks(name, *made, resnet.cut, 1, 4, teacher_recipe=ONE_CYCLE, **about)


NETWORKS: Mapping[str, Networks] = {
    **{name: vgg(ARCHITECTURES[name]) for name in TRAINABLE},
    **{name: resnets(name) for name in RESNETS},
}


def frozen(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, without gradients. Every teacher is frozen by this function."""
    return network.eval().requires_grad_(False)


def initialize(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Kaiming normal (fan_out, relu) for convolutions, normal(0, 0.01) for linear layers, bias 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01, generator=generator)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Here, what a network draws when it is made follows from the generator's seed. The generator draws nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield


@torch.no_grad()
def output_shapes(blocks: nn.Sequential, image_size: int) -> list[tuple[int, ...]]:
    """The shape of one image, then of each block's output: (3, 32, 32), (64, 16, 16), ..., (classes,).

    Read off one forward pass of the blocks, which must be in evaluation mode.
    """
    outputs = [torch.zeros(1, 3, image_size, image_size, device=next(blocks.parameters()).device)]
    for block in blocks:
        outputs.append(block(outputs[-1]))
    return [tuple(output.shape[1:]) for output in outputs]


def batchnorms_in(network: nn.Module) -> list[nn.Module]:
    """Its layers with statistics of batches, as a ResNet has them; the student of a VGG has none."""
    return [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def batch_sizes(images: int, batch: int, joins_last: bool) -> list[int]:
    """An epoch's batches. joins_last: a last single image, on which BatchNorm cannot train, joins the batch before."""
    sizes = [min(batch, images - start) for start in range(0, images, batch)]
    if joins_last and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
