"""What a sweep is to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.datasets import ImageDataset
from grafting.method import GRAFTING, Method
from grafting.recipes import Recipe
from models.vgg import BlockwiseVGG

CellKey = tuple[int, int]  # (shots, trial)


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, and how to run them.

    cells: in the order in which to run them. precision: one of utils.precision. eval_every: epochs between test
    accuracies (Distillation.run). memory: bytes for the cache of teacher features. fresh: run finished cells
    again. report: called with each message for the user. is_leader: whether this process removes the old results, for
    all ranks, where `fresh`. method: how the students are made.
    """

    dataset: ImageDataset
    recipe: Recipe
    teacher: BlockwiseVGG
    teacher_file: Path
    cells: tuple[CellKey, ...]
    seed: int
    subset_seed: int
    precision: str
    eval_every: int | None
    data_path: Path
    output_dir: Path
    student_dir: Path
    memory: int
    fresh: bool
    report: Callable[[str], None]
    is_leader: bool = True
    method: Method = GRAFTING
