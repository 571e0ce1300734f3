"""How much accuracy a student loses, by one measurement of its teacher: a least-squares fit.

    python -m benchmarks.law

Reads what benchmarks/teachers.py has written into benchmarks/results/law. Prints the table of the teachers and the
coefficients for experiments/expectation.py, and writes law.md beside the files. Shapes10's teachers are fitted; all
others only show how far the rule carries.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.teachers import MEASURED
from experiments.expectation import Rule
from models.vgg import FIRST_GRAFTED
from utils import files
from utils.errors import BadInput
from utils.text import markdown_table

SHOTS = (1, 10)
FITTED = "Shapes10"
KIND = "a file of benchmarks/teachers.py"


@dataclass(frozen=True)
class Point:
    """A measured teacher. origin: itself, or the teacher of which it is a rescaled copy.

    accuracy, one_shot: in percent; one_shot and rms are of block 2. losses: teacher minus student (best of L=3, mean of
    the trials) in points, by N.
    """

    name: str
    origin: str
    dataset: str
    accuracy: float
    one_shot: float
    rms: float
    losses: dict[int, float]

    @property
    def shortfall(self) -> float:
        return self.accuracy - self.one_shot


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    try:
        points = read(MEASURED)
        if len({point.origin for point in fitted(points)}) < 2:  # one is left out in turn
            raise BadInput(f"{MEASURED}: fewer than two trained teachers of {FITTED}; run benchmarks.teachers first")
        text = markdown(points)
        files.write_text(MEASURED / "law.md", text)
    except BadInput as error:
        sys.stderr.write(f"benchmarks.law: {error}\n")
        return 2
    sys.stdout.write(text)
    return 0


def read(folder: Path) -> list[Point]:
    """The teachers in the folder: those of the fit first, by shortfall and size."""
    points = []
    for path in sorted(folder.glob("*.json")):
        content = files.read_json(path, KIND)
        with files.reading(path, KIND):
            teacher, cells = content["teacher"], content["cells"]
            (block,) = [block for block in content["blocks"] if block["block"] == FIRST_GRAFTED - 1]
            rescaled = teacher.get("source") and not teacher.get("recipe")
            losses = {
                n: [cell.get("teacher", teacher["accuracy"]) - cell["best"] for cell in cells if cell["shots"] == n]
                for n in SHOTS
            }
            points.append(
                Point(
                    name=path.stem,
                    origin=teacher["source"] if rescaled else path.stem,
                    dataset=content["dataset"],
                    accuracy=teacher["accuracy"],
                    one_shot=block["one_shot"],
                    rms=block["rms"],
                    losses={n: statistics.fmean(lost) for n, lost in losses.items() if lost},
                )
            )
    return sorted(points, key=lambda p: (p.dataset != FITTED, p.dataset, round(p.shortfall, 2), -p.rms))


def fitted(points: Sequence[Point]) -> list[Point]:
    """The points of the fit: those with a result for each of SHOTS."""
    return [point for point in points if point.dataset == FITTED and set(SHOTS) <= set(point.losses)]


def fit(points: Sequence[Point], shots: int) -> Rule:
    """Least squares through the origin. The error is that at each teacher and its copies of a fit without them."""
    misses = []
    for origin in sorted({point.origin for point in points}):
        without = Rule(slope([p for p in points if p.origin != origin], shots), error=0.0)
        misses += [miss(without, point, shots) for point in points if point.origin == origin]
    return Rule(slope(points, shots), error=root_mean_square(misses))


def slope(points: Sequence[Point], shots: int) -> float:
    """Points lost for each point of shortfall."""
    x, y = zip(*((point.shortfall, point.losses[shots]) for point in points), strict=True)
    return float(np.dot(x, y) / np.dot(x, x))


def miss(rule: Rule, point: Point, shots: int) -> float:
    """By how many points the student loses more than the rule says."""
    return point.losses[shots] - rule.loss(point.shortfall)


def root_mean_square(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def residual(rule: Rule, points: Sequence[Point], shots: int) -> float:
    """Standard deviation of what the fit leaves, with one degree of freedom fewer than points."""
    misses = [miss(rule, point, shots) for point in points]
    return float(np.sqrt(np.square(misses).sum() / (len(misses) - 1)))


def markdown(points: Sequence[Point]) -> str:
    """The table of the teachers and the fit."""
    used = fitted(points)
    rules = {n: fit(used, n) for n in SHOTS}
    lines = [
        ["data set", "teacher", "%", "one image per class - teacher", "RMS of block 2"],
        ["-", "-", "-:", "-:", "-:"],
    ]
    for n in SHOTS:
        lines[0] += [f"N = {n}: student - teacher", "by the rule"]
        lines[1] += ["-:", "-:"]
    for p in points:
        line = [p.dataset, p.name, f"{p.accuracy:.2f}", f"{-p.shortfall:+.2f}", f"{p.rms:.2f}"]
        for n, rule in rules.items():
            measured = f"{-p.losses[n]:+.2f}" if n in p.losses else "-"
            line += [measured, f"{-rule.loss(p.shortfall):+.2f}"]
        lines.append(line)
    origins = len({point.origin for point in used})
    below = [f"Fitted on the {len(used)} rows of {FITTED}: {origins} trained teachers and rescaled copies of them.\n"]
    for n, rule in rules.items():
        below.append(
            f"- N = {n}: {rule.per_point:.3f} points for each point of shortfall; residuals' standard deviation"
            f" {residual(rule, used, n):.2f}, root mean square error at teachers left out {rule.error:.2f} points"
        )
    return f"{markdown_table(lines)}\n\n" + "\n".join(below) + "\n"


if __name__ == "__main__":
    sys.exit(main())
