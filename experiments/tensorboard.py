"""TensorBoard: a run per cell, and runs over N with the paper's line beside ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

SHOWN_CLASSES, SHOWN_SHOTS = 20, 10
STAGES = {"grafting, stage 1": ("B0", "B1", "B2"), "grafting, stage 2": ("L2", "L2-back", "L3")}
OVER_SHOTS = "accuracy over N/best of L3, test %"


class CellCurves:
    """The curves of one cell, written after every epoch. A resumed cell writes them again from the beginning."""

    def __init__(self, output_dir: Path, shots: int, trial: int, setting: Mapping[str, Any], images: np.ndarray):
        directory = output_dir / "tensorboard" / f"{shots:02d}-shot" / f"trial-{trial}"
        shutil.rmtree(directory, ignore_errors=True)
        self.writer = SummaryWriter(str(directory))
        self.rates = {step["phase"]: (step["lr_student"], step["lr_adapter"]) for step in setting["schedule"]}
        stages = STAGES if "B0" in self.rates else {setting["method"]: tuple(self.rates)}
        self.stage_of = {phase: stage for stage, phases in stages.items() for phase in phases}
        self.written = dict.fromkeys(self.rates, 0)
        self.writer.add_custom_scalars(
            {
                stage: {
                    what: ["Multiline", [f"{stage}: {what}/{phase}$" for phase in phases]]
                    for what in ("loss", "test %")
                }
                for stage, phases in stages.items()
            }
        )
        self.writer.add_text("configuration", f"```json\n{json.dumps(setting, indent=1)}\n```")
        self.writer.add_image("few-shot images, a class per row", grid_of(images, shots))

    def __call__(self, phase: str, curve: Any) -> None:
        """Write the new epochs of a phase's Curve (grafting/distillation.py)."""
        stage, (student, adapters) = self.stage_of[phase], self.rates[phase]
        for epoch in range(self.written[phase] + 1, curve.epoch + 1):
            self.writer.add_scalar(f"{stage}: loss/{phase}", curve.losses[epoch - 1], epoch)
            self.writer.add_scalar(f"learning rate/{phase}, student", student, epoch)
            self.writer.add_scalar(f"learning rate/{phase}, adapters", adapters, epoch)
            if epoch in curve.accuracies:
                self.writer.add_scalar(f"{stage}: test %/{phase}", curve.accuracies[epoch], epoch)
        self.written[phase] = curve.epoch

    def close(self) -> None:
        self.writer.close()


def grid_of(images: np.ndarray, shots: int) -> torch.Tensor:
    """Few-shot images (shots * classes, 3, 32, 32) as one picture (3, H, W), a class per row; not all of many."""
    by_class = torch.from_numpy(images).unflatten(0, (-1, shots))[:SHOWN_CLASSES, :SHOWN_SHOTS]
    return make_grid(by_class.flatten(0, 1), nrow=by_class.shape[1], padding=1, pad_value=255)


def write_accuracy_over_shots(output_dir: Path, lines: Mapping[str, list[tuple[int, float]]]) -> None:
    """Runs `summary/<line>` with test accuracy over N; lines: points (N, accuracy in percent) by name.

    One process at a time may write them: they replace those of before.
    """
    directory = output_dir / "tensorboard" / "summary"
    shutil.rmtree(directory, ignore_errors=True)
    for name, points in lines.items():
        with SummaryWriter(str(directory / name)) as writer:
            for shots, accuracy in points:
                writer.add_scalar(OVER_SHOTS, accuracy, shots)
