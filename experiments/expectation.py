"""Which student to expect of a teacher: a rule fitted on measured teachers (docs/teachers.md).

A student, the best epoch of L=3, loses against its teacher about `per_point` percentage points for each point of the
teacher's shortfall: its accuracy minus that of one image per class, read off block 2's output
(experiments/diagnosis.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.balancing import TARGET_RMS

SMALL = 1.0  # with a far smaller root mean square of block 2's output, B0 lost 5 to 6 points on Shapes10
LITTLE = 0.2  # of the way from chance to 100%; a network of other data with as many classes stays below
FOREIGN = 3.0  # points by which one image per class is better than the teacher; of no teacher that was measured
POOR = 3.0  # points below the teacher at N = 1; the paper's CIFAR10 student is 2.09 below


@dataclass(frozen=True)
class Rule:
    """per_point: the coefficient. error: root mean square error in points, at teachers left out of the fit."""

    per_point: float
    error: float

    def loss(self, shortfall: float) -> float:
        """Teacher minus student, in percentage points."""
        return self.per_point * shortfall


# By N. Fitted on Shapes10's teachers: python -m benchmarks.law
RULES = {1: Rule(0.664, 3.94), 10: Rule(0.09, 0.51)}
RULE_STEPS = 840  # in a cell of Shapes10, as in one of CIFAR10
# What was measured beyond them (docs/teachers.md).
ON_CIFAR10 = (
    "At N = 1, students of three CIFAR10 teachers lost 0.25, 0.49 and 9.75 points; the rule says 0.1, 0.3 and 8.0."
)
ON_CIFAR100 = (
    "On CIFAR100, with 28,900 steps in a cell at N = 1, students lose less: those of four teachers"
    " lost 0.47, 0.79, 2.80 and 11.94 points; the rule says 1.1, 2.9, 7.1 and 21.7."
)


def doubt(teacher: float, classes: int) -> str:
    """What to add to a teacher's test accuracy (%) that is little better than chance."""
    chance = 100 / classes
    is_little = teacher < chance + LITTLE * (100 - chance)
    return f"; little better than chance ({chance:.0f}%): was it trained on these data?" if is_little else ""


def describe(
    teacher: float, one_shot: float, rms: float, steps: int, inputs: Sequence[str], teacher_file: Path
) -> list[str]:
    """What student to expect, how far that may be wrong, and what to do where it is poor: a line for each.

    teacher, one_shot: in percent. steps: of a cell at N = 1. inputs: the flags that name the data set.
    """
    if teacher < one_shot - FOREIGN:
        return ["One image per class, read off block 2, beats the teacher itself: was it trained on these data?"]
    losses = {shots: rule.loss(teacher - one_shot) for shots, rule in RULES.items()}
    students = " and ".join(f"{teacher - loss:.1f}% at N = {shots}" for shots, loss in losses.items())
    errors = " and ".join(f"{rule.error:.1f}" for rule in RULES.values())
    return [
        f"Student to expect, best of L=3: {students}. This is a rule with errors of {errors} points (root mean square"
        " at teachers that it was not fitted on).",
        f"It was fitted on teachers of Shapes10, whose cells have {RULE_STEPS} steps; here a cell has {steps:,} at"
        f" N = 1. {ON_CIFAR100 if steps > RULE_STEPS else ON_CIFAR10}",
        *_advice(losses[1], rms, inputs, teacher_file),
    ]


def _advice(loss: float, rms: float, inputs: Sequence[str], teacher_file: Path) -> list[str]:
    """loss: to expect at N = 1, in points."""
    expected = f"That is {loss:.1f} points below the teacher at N = 1"
    command = ["python", "train_fskd.py", *inputs, "--train_teacher", "--teacher_from", str(teacher_file)]
    if loss > POOR:
        advice = (
            f"{expected}, which is poor: at block 2, one image of a class does not stand for the others. A few epochs"
            " on the labelled training images make the teacher more graftable (by how much: docs/teachers.md):"
        )
        command += ["--teacher", str(teacher_file.with_name(f"{teacher_file.stem}-graftable.pth"))]
    elif 0 < rms < SMALL:
        advice = (
            f"{expected}. Block 2's output is small (RMS {rms:.2g}), which may make the student worse. This brings it"
            f" near {TARGET_RMS:g} and leaves the teacher's logits as they are (docs/teachers.md):"
        )
        balanced = teacher_file.with_name(f"{teacher_file.stem}-balanced.pth")
        command += ["--teacher_epochs", "0", "--teacher", str(balanced)]
    else:
        return [f"{expected}: this teacher can be grafted as it is."]
    return [advice, f"  {shlex.join(command)}"]
