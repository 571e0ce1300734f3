"""The schedules: epochs, learning rates, batch sizes and published results of each data set.

The numbers are from docs/method.md, sections 4 to 6 and 8. Learning rates of stage 1 are for 10 shots and scale with
N/10; the learning rate of stage 2 holds for every N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from models.architectures import FIRST_GRAFTED, LAST_GRAFTED
from models.teacher_recipe import TeacherRecipe

if TYPE_CHECKING:
    from torch import Tensor  # not loaded here: the command line is parsed without it

    Loss = Callable[[Tensor, Tensor], Tensor]

BATCH_AT_TEN_SHOTS = 64
CURVE_POINTS = 5  # test accuracies in a phase where they decide nothing, however long the phase is


@dataclass(frozen=True)
class Phase:
    """One distillation: its span, epochs and learning rates.

    span: [i, j), the teacher's blocks that are replaced. lr_student: learning rate of student blocks. lr_adapter:
    learning rate of the adapters. scaled: whether both scale with N/10. selects_among=K: keep the weights of the best
    test accuracy in the last K epochs, each of which is measured; 0: keep none but the last. least_views: how many
    views it shows at least, in batches of at least 64; 0: one of each image in every epoch (grafting/start.py).

    Only for comparisons with other methods (comparisons/): loss: of (student, teacher), summed over the batch, instead
    of the distance of grafting/distillation.py. at_logits: whether it compares the logits; if not, the outputs of the
    span's last block.
    """

    name: str
    span: tuple[int, int]
    epochs: int
    lr_student: float
    lr_adapter: float
    scaled: bool
    selects_among: int = 0
    least_views: int = 0
    loss: Loss | None = None
    at_logits: bool = True

    @classmethod
    def without_steps(cls, name: str, span: tuple[int, int]) -> Phase:
        """What is computed at once; it counts as one epoch."""
        return cls(name, span, 1, 0.0, 0.0, scaled=False, selects_among=1)

    def learning_rates(self, shots: int) -> tuple[float, float]:
        """(student blocks, adapters) at N shots."""
        scale = shots / 10 if self.scaled else 1.0
        return self.lr_student * scale, self.lr_adapter * scale

    def views_in_epoch(self, images: int) -> int:
        """How many views an epoch shows of so many images: of each as many, one or more."""
        return images * max(1, ceil(self.least_views / (self.epochs * images)))

    def batch(self, shots: int) -> int:
        """The batch size at N shots; with least_views, not below that of ten shots."""
        return max(batch_size(shots), BATCH_AT_TEN_SHOTS if self.least_views else 0)

    @property
    def best_from(self) -> int:
        """The first epoch that may be the best one, counted from 1."""
        return max(1, self.epochs - self.selects_among + 1) if self.selects_among else 1

    def selects(self, epoch: int) -> bool:
        """Whether the weights of this epoch may be kept as the best."""
        return self.selects_among > 0 and epoch >= self.best_from

    def measures(self, epoch: int, eval_every: int | None) -> bool:
        """Whether the test accuracy of the epoch is measured; the last epoch always is.

        eval_every: epochs between test accuracies that decide nothing; None: CURVE_POINTS of them.
        """
        every = eval_every or ceil(self.epochs / CURVE_POINTS)
        return self.selects(epoch) or epoch % every == 0 or epoch == self.epochs


@dataclass(frozen=True)
class Recipe:
    """What differs between data sets: schedules, teachers, published results.

    stage1_epochs, stage1_lr: of B0, B1, ... in stage 1; the last number holds for all further scions. adapter_lr: of
    the adapters in stage 1. stage2_epochs: of L=2, L=3, ..., likewise. stage2_lr: one learning rate for everything, as
    the released code runs it (docs/method.md, section 10). selects_among: as in Phase, for the last phase; None:
    as many as it has by this schedule. least_views: as in Phase, for the last phase. blocks: the teacher's blocks that
    are replaced, as its Networks say.

    teachers: recipes to train a teacher, by name. trains_own_teacher: whether a missing teacher is trained at once.
    published: the paper's best test accuracy (mean, standard deviation) in percent by N. published_teacher: the test
    accuracy of its teacher in percent, as reported for CIFAR10; not known for CIFAR100.
    """

    stage1_epochs: tuple[int, ...]
    stage1_lr: tuple[float, ...]
    adapter_lr: float
    stage2_epochs: tuple[int, ...]
    stage2_lr: float
    teachers: Mapping[str, TeacherRecipe]
    selects_among: int | None = None
    least_views: int = 0
    blocks: range = range(FIRST_GRAFTED, LAST_GRAFTED + 1)
    networks: str = "vgg16"
    trains_own_teacher: bool = False
    published: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    published_teacher: float | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """B0, B1, ..., one for each replaced block; then L=2, L=3, ... up to all. The last one chooses the student."""
        first, lr = self.blocks[0], self.stage2_lr
        phases = [
            Phase(f"B{k}", (b, b + 1), _entry(self.stage1_epochs, k), _entry(self.stage1_lr, k), self.adapter_lr, True)
            for k, b in enumerate(self.blocks)
        ]
        phases += [
            Phase(f"L{n}", (first, first + n), _entry(self.stage2_epochs, n - 2), lr, lr, scaled=False)
            for n in range(2, len(self.blocks) + 1)
        ]
        last = phases.pop()
        selects_among = min(self.selects_among or last.epochs, last.epochs)
        return (*phases, replace(last, selects_among=selects_among, least_views=self.least_views))

    def at_once(self, name: str, lr_student: float, lr_adapter: float, loss: Loss | None = None) -> Phase:
        """All blocks, for the epochs of all phases; the student is chosen among as many epochs as grafting's."""
        last = self.phases[-1]
        rates = {"lr_student": lr_student, "lr_adapter": lr_adapter, "scaled": False}
        return replace(last, name=name, epochs=self.epochs, loss=loss, **rates)

    @property
    def stage1(self) -> tuple[Phase, ...]:
        return self.phases[: len(self.blocks)]

    @property
    def stage2(self) -> tuple[Phase, ...]:
        return self.phases[len(self.blocks) :]

    @property
    def epochs(self) -> int:
        """Of all phases together."""
        return sum(phase.epochs for phase in self.phases)


def _entry(numbers: tuple, index: int) -> Any:
    """The number at an index; the last one for all further indices."""
    return numbers[min(index, len(numbers) - 1)]


def batch_size(shots: int) -> int:
    """64 images at 10 shots, in proportion elsewhere: 6, 12, 19, ... 64, 128, 320."""
    return int(BATCH_AT_TEN_SHOTS * shots / 10)


_HALVED_NINE_TIMES = tuple((k / 10, 0.5) for k in range(1, 10))  # every 30 of 300 epochs
_QUICK = TeacherRecipe(  # its prototype_head is compared with others in docs/teachers.md
    "quick", epochs=22, lr=0.06, nesterov=True, one_cycle=True, batchnorm=True, decays_biases=False,
    linear_head=0.4, prototype_head=4.0, balanced=True,
)  # fmt: skip
# As a teacher is usually trained: nothing that makes it graftable.
_PLAIN = replace(_QUICK, name="plain", linear_head=0.0, prototype_head=0.0, balanced=False)
# From a finished teacher.
_FURTHER = replace(_QUICK, name="further", epochs=3, lr=0.01, batchnorm=False, prototype_head=1.0)
CIFAR10 = Recipe(
    stage1_epochs=(100, 60), stage1_lr=(2.5e-4,), adapter_lr=2.5e-3,
    stage2_epochs=(100,), stage2_lr=1e-4,
    teachers={
        "published": TeacherRecipe("published", epochs=300, lr=0.05, falls=_HALVED_NINE_TIMES),
        "quick": replace(_QUICK, prototype_head=2.0),
        "plain": _PLAIN,
        "further": _FURTHER,
    },
    published={
        1: (90.74, 0.49), 2: (92.60, 0.06), 3: (92.70, 0.07), 4: (92.77, 0.04), 5: (92.88, 0.07), 6: (92.84, 0.08),
        7: (92.77, 0.05), 8: (92.83, 0.06), 9: (92.88, 0.05), 10: (92.89, 0.06), 20: (92.78, 0.09), 50: (92.76, 0.09),
    },
    published_teacher=92.83,
)  # fmt: skip

CIFAR100 = Recipe(
    stage1_epochs=(1000, 200), stage1_lr=(2.5e-4, 1e-3), adapter_lr=1e-3,
    stage2_epochs=(150,), stage2_lr=1e-4,
    teachers={
        "published": TeacherRecipe(
            "published", epochs=200, lr=0.01, nesterov=True, warmup_epochs=1,
            falls=((0.3, 0.2), (0.6, 0.2), (0.9, 0.2)),
        ),
        "quick": _QUICK,
        "plain": _PLAIN,
        "further": _FURTHER,
    },
    published={
        1: (64.22, 0.17), 2: (66.51, 0.11), 3: (67.35, 0.10), 4: (67.69, 0.03), 5: (68.16, 0.20), 6: (68.38, 0.11),
        7: (68.46, 0.10), 8: (68.78, 0.22), 9: (68.77, 0.10), 10: (68.86, 0.03), 20: (69.04, 0.08), 50: (69.06, 0.10),
    },
)  # fmt: skip

SHAPES10 = Recipe(  # a narrow teacher: its scions need larger steps than the paper's
    stage1_epochs=(100, 60), stage1_lr=(1e-3,), adapter_lr=2.5e-3,
    stage2_epochs=(100,), stage2_lr=5e-4,
    teachers={
        "published": CIFAR10.teachers["published"],
        "quick": replace(_QUICK, epochs=14, lr=0.03, batch=64, linear_head=1.0),
        "plain": replace(_PLAIN, epochs=14, lr=0.03, batch=64),
        "further": replace(_FURTHER, batch=64, linear_head=1.0),
    },
    networks="vgg11-small",
    trains_own_teacher=True,
)  # fmt: skip

# As CIFAR10, but with the usual weight on the prototypes: CIFAR10's own was chosen on its images.
FOLDER = replace(CIFAR10, teachers={**CIFAR10.teachers, "quick": _QUICK}, published={}, published_teacher=None)

RECIPES = {"CIFAR10": CIFAR10, "CIFAR100": CIFAR100, "Shapes10": SHAPES10, "Folder": FOLDER}
PUBLISHED_SHOTS = tuple(CIFAR10.published)


def recipe_of(dataset: str) -> Recipe:
    """The recipe of the data set of that name; a folder's name follows "Folder-"."""
    return RECIPES[dataset if dataset in RECIPES else "Folder"]
