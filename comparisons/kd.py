"""Students without adapters: their own blocks behind each other, and the teacher's blocks around them.

Trained by knowledge distillation (Hinton, Vinyals and Dean, 2015), without labels, so with the first of the paper's two
loss terms; or by FitNets (Romero et al., ICLR 2015), which begins with hints. A hint trains the student up to a block,
so that a regressor behind it, here a 1x1 convolution, gives the teacher's output of that block. The regressors are left
out afterwards. docs/comparisons.md lists the differences from the papers.

A student's file has the layout of a whole network; for a VGG16 the keys of `vgg16-graft` (models/architectures.py).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from grafting import students
from grafting.method import Method, Training
from grafting.recipes import Phase, Recipe
from grafting.scions import Adapter
from grafting.teacher import FrozenTeacher
from models.architectures import CLASSIFIER
from models.checkpoints import State
from models.networks import Networks, frozen, initialize, output_shapes, seeded
from utils.errors import BadInput


def own_blocks(student: nn.Module, teacher: FrozenTeacher) -> list[nn.Sequential]:
    """The student's blocks that are not the teacher's: a network each, in the place of B0, B1, ..."""
    return [nn.Sequential(teacher.networks.cut(student)[block]) for block in teacher.networks.grafted]


class PlainStudent(Method):
    """A method whose student has no adapters."""

    def require_networks(self, networks: Networks) -> None:
        """Raises BadInput for a VGG whose classifier stays: its blocks are narrower than it expects."""
        super().require_networks(networks)
        if networks.is_vgg and CLASSIFIER not in networks.grafted:
            raise BadInput(f"--method {self.name}: has no adapters, so block {CLASSIFIER} must be among --grafted")

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        """Raises BadInput where the student's blocks do not fit between the teacher's without adapters."""
        with seeded(generator):
            student = teacher.networks.student(teacher.classes)
        self.require_plain(student, teacher)
        return own_blocks(initialize(student.requires_grad_(True), generator), teacher)

    def require_plain(self, student: nn.Module, teacher: FrozenTeacher) -> None:
        """Raise BadInput where the student's blocks do not fit between the teacher's without adapters."""
        networks = teacher.networks
        shapes = output_shapes(frozen(networks.cut(student)), teacher.image_size)
        for block in (networks.first, networks.last + 1):
            if shapes[block] != teacher.shapes[block]:
                raise BadInput(
                    f"--method {self.name}: in front of block {block} the teacher has {teacher.shapes[block]}, the"
                    f" student {shapes[block]}; without adapters they must be equal"
                )

    def write(self, teacher: FrozenTeacher, state: State, path: Path) -> None:
        """Write the whole student. state: of the sequence of its own blocks."""
        blocks = nn.Sequential(*own_blocks(teacher.networks.student(teacher.classes), teacher))
        blocks.load_state_dict(state)
        students.write(teacher, blocks.to(teacher.device), path)


@dataclass(frozen=True)
class Softened:
    """T^2 times the Kullback-Leibler divergence of the probabilities at temperature T, summed over the batch.

    The factor keeps the gradients comparable between temperatures (section 2 of the paper).
    """

    temperature: float

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """student, teacher: logits (B, classes) -> scalar."""
        ours, theirs = (functional.log_softmax(x.float() / self.temperature, dim=1) for x in (student, teacher))
        return functional.kl_div(ours, theirs, reduction="sum", log_target=True) * self.temperature**2


@dataclass(frozen=True)
class Hint:
    """Half the squared Euclidean distance of two outputs, summed over the batch (equation 3 of the paper)."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """student, teacher: (B, C, H, W) -> scalar."""
        return (student.float() - teacher.float()).square().sum() / 2


@dataclass(frozen=True)
class KD(PlainStudent):
    """lr: learning rate, for every N."""

    name: ClassVar[str] = "kd"
    lr: float
    temperature: float

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        return (recipe.at_once("kd", self.lr, self.lr, Softened(self.temperature)),)


@dataclass(frozen=True)
class FitNets(PlainStudent):
    """lr_hint, lr: learning rates of the hints and of knowledge distillation, for every N.

    The hints, on all grafted blocks but the last, take as many epochs as B0, B1, ... of grafting, knowledge
    distillation the rest.
    """

    for_vggs: ClassVar[bool] = True

    name: ClassVar[str] = "fitnets"
    lr_hint: float
    lr: float
    temperature: float

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        first, lr = recipe.blocks[0], self.lr_hint
        hints = [
            Phase(f"hint {b}", (first, b + 1), alike.epochs, lr, lr, scaled=False, loss=Hint(), at_logits=False)
            for b, alike in zip(recipe.blocks[:-1], recipe.stage1[:-1], strict=True)
        ]
        (kd,) = KD(self.lr, self.temperature).phases(recipe)
        return *hints, replace(kd, epochs=kd.epochs - sum(hint.epochs for hint in hints))

    def fresh(self, teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
        """The student's own blocks, and a regressor behind each of them but the last."""
        blocks, networks = super().fresh(teacher, generator), teacher.networks
        shapes = output_shapes(frozen(networks.cut(networks.student(teacher.classes))), teacher.image_size)
        widths = [(shapes[block + 1][0], teacher.shapes[block + 1][0]) for block in networks.grafted[:-1]]
        return [*blocks, *(nn.Sequential(initialize(Adapter(*pair), generator)) for pair in widths)]

    def train(self, recipe: Recipe, training: Training) -> None:
        *hints, kd = self.phases(recipe)
        blocks, regressors = training.networks[: len(recipe.blocks)], training.networks[len(recipe.blocks) :]
        for count, (hint, regressor) in enumerate(zip(hints, regressors, strict=True), start=1):
            training.distill(hint, [*blocks[:count], regressor])
        training.distill(kd, blocks)
