"""How a teacher is trained, as data. The recipes of each data set are in grafting/recipes.py."""

from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

LEAST_STEPS = 500  # of the optimiser, for a new network; Shapes10's quick recipe takes 882
LEAST_BATCH = 16  # of few images


@dataclass(frozen=True)
class TeacherRecipe:
    """SGD for a teacher. The learning rate depends on progress, so a recipe fits any number of epochs.

    falls: (progress in [0, 1), factor): after that progress the learning rate is multiplied by the factor.
    one_cycle: instead, linearly up to lr over the first fifth, then linearly down to 0. warmup_epochs: over so many
    epochs the learning rate first rises linearly. batchnorm: BatchNorm after every convolution, folded at the end.
    decays_biases: whether biases and BatchNorm's parameters have weight decay too. linear_head, prototype_head: weights
    of the losses of heads on block 2's output (models/training_layers.py), which are dropped at the end. balanced:
    bring block 2's output to one size at the end (models/balancing.py). The authors' teachers have none of these three.
    passes: how often an epoch shows each image, each time in another view.
    """

    name: str
    epochs: int
    lr: float
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    warmup_epochs: int = 0
    falls: tuple[tuple[float, float], ...] = ()
    one_cycle: bool = False
    batchnorm: bool = False
    decays_biases: bool = True
    linear_head: float = 0.0
    prototype_head: float = 0.0
    balanced: bool = False
    passes: int = 1

    def of_few(self, images: int) -> "TeacherRecipe":
        """The recipe for a new network and so many images: few need smaller batches and more passes for LEAST_STEPS.

        The learning rate is in proportion to the batch.
        """
        batch, passes = self.batch, 1
        while batch // 2 >= LEAST_BATCH and self.epochs * ceil(images / batch) < LEAST_STEPS:
            batch //= 2
        if self.epochs * ceil(images / batch) < LEAST_STEPS:
            passes = ceil(LEAST_STEPS * batch / (self.epochs * images))
        return replace(self, batch=batch, lr=self.lr * batch / self.batch, passes=passes)

    @property
    def content(self) -> dict[str, Any]:
        """For records. The records of most teachers are older than `passes`."""
        return {name: value for name, value in asdict(self).items() if name != "passes" or value > 1}

    def rate(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, which may be a fraction."""
        progress = epoch / self.epochs
        if self.one_cycle:
            return self.lr * min(progress / 0.2, (1 - progress) / 0.8)
        rate = self.lr * min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else self.lr
        for progress_at_drop, factor in self.falls:
            if epoch > round(progress_at_drop * self.epochs, 6):
                rate *= factor
        return rate


# For networks that have BatchNorm of their own, such as ResNets; its numbers are ours, not the paper's.
ONE_CYCLE = TeacherRecipe("one-cycle", epochs=20, lr=0.1, nesterov=True, one_cycle=True, decays_biases=False)
