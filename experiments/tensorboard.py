"""TensorBoard, in `<output_dir>/tensorboard`: what is drawn while cells run, and what --table makes from result files.

    accuracy over N            the figure, the table, the teacher and the commands; a run below it for each line
    cells/trial-0              the cells of a trial: loss and test accuracy by epoch of each phase, the setting
    results/trial-0            their results, with which HParams lists the trials
    pictures                   few-shot images of each N, confusion matrices of each cell
    teacher/<name>             the training of a teacher

TensorBoard shows no run at first where there are more than 40; so a trial's cells share a run, and N is in their tags.
Every tag begins with the data set, so that two of them in one --logdir have cards of their own.

A point stands where something was measured. The step is the epoch, over N it is N. What is written again replaces the
file before. No result depends on them: the first error of a run is one line, and that run is written no further.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.drawing import Report, decoration
from experiments.figure import Line
from grafting.distillation import Curve
from utils import files
from utils.text import in_one_line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10  # how late a reader sees a running cell
EVENTS_WAITING = 10_000  # for the thread that writes them; with TensorBoard's usual ten, a writer of many waits for it
OVER_SHOTS = "accuracy over N"
SHOWN = ("best", "last")  # of a result


def root(output_dir: Path) -> Path:
    return output_dir / "tensorboard"


def margin(dataset: str) -> list[str]:
    """The tags of a line over N: its mean, and one standard deviation below and above."""
    return [f"{dataset} over N/{what}, test %" for what in ("mean", "one deviation below", "one deviation above")]


class Run:
    """A run of TensorBoard, in place of the one that was in the folder before. It begins when something is written.

    suffix: of its event file's name; files with another one stay in the folder.
    """

    def __init__(self, directory: Path, report: Report, suffix: str = ""):
        self.directory, self.report, self.suffix = directory, report, suffix
        self.writer: SummaryWriter | None = None
        self.is_broken = False

    def _begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        before = list(self.directory.glob(f"events.*{self.suffix}"))
        self.writer = SummaryWriter(
            str(self.directory), max_queue=EVENTS_WAITING, flush_secs=FLUSH_SECONDS, filename_suffix=self.suffix
        )
        for file in before:
            file.unlink(missing_ok=True)

    def write(self, act: Callable[[SummaryWriter], None]) -> None:
        """Let `act` write; the first error is one line, and after it nothing is written."""
        if self.is_broken:
            return
        with decoration("TensorBoard's files", self.report):
            self.is_broken = True  # unless all of this can be done
            if not self.writer:
                self._begin()
            act(self.writer)
            self.is_broken = False
        if self.is_broken and self.writer:
            with suppress(Exception):
                self.writer.close()

    def close(self) -> None:
        if self.writer:
            self.write(lambda writer: writer.close())


class CellCurves(Run):
    """What a trial's run holds of one cell, written after every epoch. A resumed cell writes it again.

    setting: as in result files. teacher: its test accuracy in percent.
    """

    def __init__(self, output_dir: Path, setting: Mapping[str, Any], teacher: float, report: Report):
        directory = root(output_dir) / "cells" / f"trial-{setting['trial']}"
        super().__init__(directory, report, suffix=f".{setting['shots']:02d}-shot")
        self.group = group(setting["dataset"], setting["shots"])
        self.written = Counter[str]()  # epochs by phase
        self.text = f"Teacher: test accuracy {teacher:.2f}%.\n\n```\n{files.json_text(setting)}\n```"

    def _begin(self) -> None:
        super()._begin()
        self.writer.add_text(f"{self.group}/setting", self.text)

    def update(self, phase: str, curve: Curve) -> None:
        """Write the new epochs of a phase's Curve (grafting/distillation.py)."""

        def write(writer: SummaryWriter) -> None:
            for epoch in range(self.written[phase] + 1, curve.epoch + 1):
                writer.add_scalar(f"{self.group}/loss, {phase}", curve.losses[epoch - 1], epoch)
                if epoch in curve.accuracies:
                    writer.add_scalar(f"{self.group}/test %, {phase}", curve.accuracies[epoch], epoch)

        self.write(write)
        self.written[phase] = curve.epoch


class TeacherCurves(Run):
    """The run of a teacher's training on a data set. A resumed training writes it again."""

    def __init__(self, output_dir: Path, name: str, dataset: str, report: Report):
        super().__init__(root(output_dir) / "teacher" / name, report)
        self.group = f"{in_one_line(dataset)}, training of a teacher"
        self.written = 0

    def update(self, epochs: Sequence[Mapping[str, float]]) -> None:
        """Write the new ones of a training's epochs: loss, accuracies in percent, learning rate."""

        def write(writer: SummaryWriter) -> None:
            for epoch, figures in enumerate(epochs[self.written :], start=self.written + 1):
                for name, value in figures.items():
                    writer.add_scalar(f"{self.group}/{name.replace('_', ' ')}", value, epoch)

        self.write(write)
        self.written = len(epochs)


def group(dataset: str, shots: int) -> str:
    """What the tags of a cell begin with."""
    return f"{in_one_line(dataset)}, N = {shots:02d}"


def rewrite_cell(output_dir: Path, result: Mapping[str, Any], report: Report) -> None:
    """The curves of a cell that is done or failed, from its result file."""
    curves = CellCurves(output_dir, result["setting"], result["teacher"]["accuracy"], report)
    for phase, fields in result.get("phases", {}).items():
        curves.update(phase, Curve.from_json(fields))
    curves.close()


def write_over_shots(
    output_dir: Path, dataset: str, lines: Mapping[str, Line], figure: np.ndarray, text: str, report: Report
) -> None:
    """Run `accuracy over N`, and a run below it for each line, each with its margin.

    lines: by name. figure: (H, W, 3) uint8. text: Markdown.
    """
    directory, name = root(output_dir) / OVER_SHOTS, in_one_line(dataset)
    run, layout = Run(directory, report), {"mean ± standard deviation, test %": ["Margin", margin(name)]}
    run.write(lambda writer: writer.add_image(f"{name} over N/figure", figure, dataformats="HWC"))
    run.write(lambda writer: writer.add_text(f"{name} over N/results", text))
    run.write(lambda writer: writer.add_custom_scalars({f"{name} over N": layout}))
    run.close()
    for outdated in {path.parent for path in directory.glob("*/events.*")} - {directory / line for line in lines}:
        shutil.rmtree(outdated, ignore_errors=True)
    for of_line, line in () if run.is_broken else lines.items():
        _write_line(Run(directory / of_line, report), margin(name), line)


def _write_line(run: Run, tags: Sequence[str], line: Line) -> None:
    def write(writer: SummaryWriter) -> None:
        for shots, mean, deviation in line:
            for tag, sign in zip(tags, (0, -1, 1), strict=True):
                writer.add_scalar(tag, mean + sign * deviation, shots)

    run.write(write)
    run.close()


def write_trials(output_dir: Path, results: Sequence[Mapping[str, Any]], report: Report) -> None:
    """A run for each trial with its results at each N, a trial of HParams. results: of one table."""
    trials = {result["setting"]["trial"]: result["setting"] for result in results}
    for trial, setting in trials.items():
        run = Run(root(output_dir) / "results" / f"trial-{trial}", report)
        _write_trial(run, setting, [result for result in results if result["setting"]["trial"] == trial])


def _write_trial(run: Run, setting: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    dataset = in_one_line(setting["dataset"])
    trial = {"dataset": dataset, **{name: setting[name] for name in ("method", "trial", "seed")}}

    def write(writer: SummaryWriter) -> None:
        from torch.utils.tensorboard.summary import hparams

        _, start, end = hparams(trial, {})  # TensorBoard finds by itself what was measured
        writer.file_writer.add_summary(start)
        for result in results:
            shots = result["setting"]["shots"]
            for what in (what for what in SHOWN if what in result):
                writer.add_scalar(f"{dataset}, results/{what}, N = {shots:02d}", result[what], shots)
        writer.file_writer.add_summary(end)

    run.write(write)
    run.close()


def write_picture(output_dir: Path, tag: str, draw: Callable[[], np.ndarray], report: Report) -> None:
    """A picture (H, W, 3) uint8 of run `pictures`, in an event file of its own; it replaces the one of that tag."""
    tag = in_one_line(tag)
    suffix = "." + "".join(character if character.isalnum() else "-" for character in tag)
    with decoration("TensorBoard's pictures", report):
        picture = draw()
        run = Run(root(output_dir) / "pictures", report, suffix)
        run.write(lambda writer: writer.add_image(tag, picture, dataformats="HWC"))
        run.close()


def _quiet(shown: Callable[[threading.ExceptHookArgs], None]) -> Callable[[threading.ExceptHookArgs], None]:
    """Without the traceback that Python prints when a thread of TensorBoard fails: its caller gets the same error."""

    def hook(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboard."):
            shown(error)

    return hook


threading.excepthook = _quiet(threading.excepthook)
