"""TensorBoard, in `<output_dir>/tensorboard`: what is drawn while cells run, and what --table makes from result files.

    accuracy over N            the figure, the table, the teacher and the commands; a run below it for each line
    cells/05-shot/trial-0      a cell: loss and test accuracy by epoch, its result, its setting
    pictures                   few-shot images of each N, confusion matrices of each cell
    teacher/<name>             the training of a teacher

The pictures and the training of a teacher need more than the result files. Event files are never changed: what is
written again replaces them.

Smoothing. Scalars draws smoothed lines, by default with a weight of 0.6; of points over N, the one at N = 10 would
show the accuracy of smaller N. So a value that is measured rarely fills the steps around it: the smoothed line has
reached the value where it is read.

Steps over N. TensorBoard has no logarithmic axis, so the step of N is 1000 log10 N. A value fills the steps half-way to
its neighbours; most of its points are before the step of N, enough where N are as far apart as the paper's. The margin
chart in Custom Scalars shows the same, and is not smoothed.

Steps of a cell. Epochs count through all phases: B1's first epoch follows B0's last. A test accuracy fills the epochs
since the one before. Each N has tags of its own, so a chart shows the trials of one N; each phase has a tag of its own,
so nothing is smoothed across phases. What does not change (learning rates, batch size) is in the text.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from experiments.setting import complete
from grafting.distillation import Curve
from utils.text import markdown_table

FLUSH_SECONDS = 10  # how late a reader sees a running cell
EVENTS_WAITING = 10_000  # for the thread that writes them; with TensorBoard's usual ten, a writer of many waits for it
# Points of an N up to its step, where 0.6 ** 14 of the value before is left: less than a thousandth. The first N, and
# those close to the N before, have fewer.
LEAD = 14
AFTER = 3  # points from its step on, its step among them
Line = Sequence[tuple[int, float, float]]  # N, mean and standard deviation in percent
OVER_SHOTS = "accuracy over N"
MARGIN = [f"{OVER_SHOTS}/{what}, test %" for what in ("mean", "one deviation below", "one deviation above")]
RESULT = {
    "best": "result/best, test %",
    "last": "result/last, test %",
    "best_epoch": "result/epoch of best",
    "seconds": "result/seconds",
}


def root(output_dir: Path) -> Path:
    return output_dir / "tensorboard"


def step_of(shots: int) -> int:
    """Where N is on the axis: 0, 301, 477, ... 1000 for N = 1, 2, 3, ... 10."""
    return round(1000 * math.log10(shots))


def writer_in(directory: Path, suffix: str = "") -> SummaryWriter:
    """A writer of a new event file, whose name ends in the suffix."""
    return SummaryWriter(str(directory), max_queue=EVENTS_WAITING, flush_secs=FLUSH_SECONDS, filename_suffix=suffix)


class CellCurves:
    """The run of one cell, written after every epoch. A resumed cell writes it again from the beginning.

    setting: as in result files. teacher: its test accuracy in percent.
    """

    def __init__(self, output_dir: Path, setting: Mapping[str, Any], teacher: float):
        self.setting = complete(setting)
        shots, trial, schedule = setting["shots"], setting["trial"], setting["schedule"]
        directory = root(output_dir) / "cells" / f"{shots:02d}-shot" / f"trial-{trial}"
        shutil.rmtree(directory, ignore_errors=True)
        self.writer = writer_in(directory)
        self.group = f"cells, N = {shots:02d}"
        self.written = {step["phase"]: 0 for step in schedule}
        self.measured = dict(self.written)  # up to which epochs the test accuracy is written
        epochs = list(accumulate((step["epochs"] for step in schedule), initial=0))
        self.epochs_before = dict(zip(self.written, epochs[:-1], strict=True))
        parts = zip(self.written, pairwise(epochs), strict=True)
        phases = ", ".join(f"{phase} {before + 1}-{end}" for phase, (before, end) in parts)
        charts = {f"test % (epochs of {phases})": "test %", "loss": "loss"}
        lines = {title: ["Multiline", [f"^{self.group}/{what}, "]] for title, what in charts.items()}
        self.writer.add_custom_scalars({f"N = {shots}": lines})
        for epoch in range(0, epochs[-1] + 1, max(1, epochs[-1] // 40)):  # charts leave out the outer 5% of all points
            self.writer.add_scalar(f"{self.group}/test %, teacher", teacher, epoch)
        self.writer.add_text("setting of a cell", setting_text(setting))

    def __call__(self, phase: str, curve: Curve) -> None:
        """Write the new epochs of a phase's Curve (grafting/distillation.py)."""
        before = self.epochs_before[phase]
        for epoch in range(self.written[phase] + 1, curve.epoch + 1):
            self.writer.add_scalar(f"{self.group}/loss, {phase}", curve.losses[epoch - 1], before + epoch)
            if epoch in curve.accuracies:
                for since in range(self.measured[phase] + 1, epoch + 1):
                    accuracy = curve.accuracies[epoch]
                    self.writer.add_scalar(f"{self.group}/test %, {phase}", accuracy, before + since)
                self.measured[phase] = epoch
        self.written[phase] = curve.epoch

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the cell's result (experiments/results.py), with which HParams lists and sorts the cells."""
        setting = self.setting
        measured = {what: result[what] for what in ("best", "last", "best_epoch") if what in result}
        measured["seconds"] = sum(result.get("seconds", {}).values())
        for what, value in measured.items():
            self.writer.add_scalar(RESULT[what], value, step_of(setting["shots"]))
        cell = {"N": setting["shots"], **{name: setting[name] for name in ("trial", "seed", "method")}}
        cell["recipe"] = setting["dataset"]
        experiment, start, end = hparams(cell, dict.fromkeys(RESULT.values()))  # add_hparams would make another run
        for summary in (experiment, start, end) if result["status"] == "done" else (experiment, start):
            self.writer.file_writer.add_summary(summary)

    def close(self) -> None:
        self.writer.close()


class RunningCurves:
    """The curves of a training, which does not depend on them: where they cannot be written, it goes on.

    make: makes CellCurves or TeacherCurves, whose methods these are. report: is given a line about the first error.
    After it nothing is written.
    """

    def __init__(self, make: Callable[[], CellCurves | TeacherCurves], report: Callable[[str], None]):
        self.report = report
        self.curves: CellCurves | TeacherCurves | None = None
        with self._reporting():
            self.curves = make()

    def __call__(self, *measured: Any) -> None:
        with self._reporting():
            if self.curves:
                self.curves(*measured)

    def finish(self, result: Mapping[str, Any]) -> None:
        with self._reporting():
            if self.curves:
                self.curves.finish(result)

    def close(self) -> None:
        with self._reporting():
            if self.curves:
                self.curves.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.report(f"TensorBoard's curves cannot be written ({error.strerror or error}); training goes on without")
            broken, self.curves = self.curves, None
            with suppress(OSError):
                if broken:
                    broken.close()


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Without the traceback that Python prints when a thread of TensorBoard fails: its caller gets the same error."""
    shown = threading.excepthook

    def hook(error: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(error.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and issubclass(error.exc_type, OSError)):
            shown(error)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = shown


def setting_text(setting: Mapping[str, Any]) -> str:
    """A cell's setting as Markdown: the schedule, a phase per row, and the rest."""
    schedule = setting["schedule"]
    columns = list(dict.fromkeys(name for step in schedule for name in step))
    lines = [columns, ["-"] * len(columns), *([_brief(step.get(name, "")) for name in columns] for step in schedule)]
    rest = {name: value for name, value in setting.items() if name != "schedule"}
    return markdown_table(lines) + "\n\n" + "\n".join(f"- {name}: {_brief(value)}" for name, value in rest.items())


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def rewrite_cell(output_dir: Path, result: Mapping[str, Any]) -> None:
    """The run of a cell that is done or failed, from its result file."""
    curves = CellCurves(output_dir, result["setting"], result["teacher"]["accuracy"])
    for phase, fields in result.get("phases", {}).items():
        accuracies = {int(epoch): value for epoch, value in fields["accuracies"].items()}
        curves(phase, Curve(fields["losses"], accuracies))
    curves.finish(result)
    curves.close()


def write_over_shots(output_dir: Path, lines: Mapping[str, Line], figure: np.ndarray, text: str) -> None:
    """Run `accuracy over N`, and a run below it for each line.

    lines: by name. figure: (H, W, 3) uint8. text: Markdown. One process at a time may write them: they replace those
    of before.
    """
    directory = root(output_dir) / OVER_SHOTS
    shots = sorted({n for line in lines.values() for n, _, _ in line})
    with replacing(directory) as writer:
        writer.add_image(f"{OVER_SHOTS}/figure", figure, dataformats="HWC")
        writer.add_text("results", text)
        writer.add_custom_scalars({OVER_SHOTS: {chart_title(shots): ["Margin", MARGIN]}})
    for name, line in lines.items():
        _write_line(directory / name, filled(line))
    for outdated in {run for run in directory.iterdir() if run.is_dir()} - {directory / name for name in lines}:
        shutil.rmtree(outdated, ignore_errors=True)


def _write_line(directory: Path, points: Line) -> None:
    """A line with its margin, as a run of its own."""
    with replacing(directory) as writer:
        for tag, sign in zip(MARGIN, (0, -1, 1), strict=True):
            for step, mean, deviation in points:
                writer.add_scalar(tag, mean + sign * deviation, step)


@contextmanager
def replacing(directory: Path, suffix: str = "") -> Iterator[SummaryWriter]:
    """A writer of a run whose event file replaces those before: all, or those whose names end in the suffix.

    They are removed when the new one is whole: TensorBoard gives a run that disappears another colour when it is back.
    """
    before = list(directory.glob(f"events.*{suffix}"))
    with writer_in(directory, suffix) as writer:
        yield writer
    for file in before:
        file.unlink(missing_ok=True)


def chart_title(shots: Sequence[int]) -> str:
    """The margin chart's title, which says where each N is."""
    shown = [n for n in shots if n < 4 or n % 5 == 0] if len(shots) > 7 else shots
    return f"mean ± deviation, test %; N = {_listed(shown)} at {_listed(map(step_of, shown))}"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def filled(line: Line) -> list[tuple[int, float, float]]:
    """Points (step, mean, deviation): the values of each N from half-way to the N before it to half-way to the next."""
    steps = [step_of(n) for n, _, _ in line]
    edges = [steps[0], *((one + two + 1) // 2 for one, two in pairwise(steps)), steps[-1] + 1]
    points = []
    for (start, end), step, (_, *values) in zip(pairwise(edges), steps, line, strict=True):
        places = [*np.linspace(start, step, LEAD), *np.linspace(step, end - 1, AFTER)]
        points += [(place, *values) for place in np.unique(np.rint(places).astype(int)).tolist()]
    return points


def write_picture(output_dir: Path, tag: str, picture: np.ndarray) -> None:
    """A picture (H, W, 3) uint8 of run `pictures`, in an event file of its own; it replaces the one of that tag."""
    suffix = "." + "".join(character if character.isalnum() else "-" for character in tag)
    with replacing(root(output_dir) / "pictures", suffix) as writer:
        writer.add_image(tag, picture, dataformats="HWC")


class TeacherCurves:
    """The run of a teacher's training, made at its first epoch. A resumed training writes it again."""

    def __init__(self, output_dir: Path, name: str):
        self.directory = root(output_dir) / "teacher" / name
        self.writer: SummaryWriter | None = None
        self.written = 0

    def __call__(self, epochs: Sequence[Mapping[str, float]]) -> None:
        """Write the new ones of a training's epochs: loss, accuracies in percent, learning rate."""
        if self.writer is None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.writer = writer_in(self.directory)
        for epoch, figures in enumerate(epochs[self.written :], start=self.written + 1):
            for name, value in figures.items():
                self.writer.add_scalar(f"training of a teacher/{name.replace('_', ' ')}", value, epoch)
        self.written = len(epochs)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
