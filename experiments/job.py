"""What a command line asks for, resolved: data set, teacher, method, folders, cells."""

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from comparisons.methods import METHODS, ONE_SHOT
from data import fewshot
from data.datasets import ImageDataset, dataset_name, open_dataset
from data.views import CIFAR_SIZE
from experiments import subsets, teachers
from experiments.arguments import DATA_PATH, PRECISIONS
from experiments.cell import Cell
from grafting.method import Method
from grafting.mixed_views import AUGMENTATION
from grafting.recipes import RECIPES, Recipe
from grafting.start import LEAST_VIEWS
from grafting.teacher import FrozenTeacher
from models import checkpoints, own_networks
from models.architectures import STUDENT_WIDTH
from models.checkpoints import State
from models.networks import NETWORKS, Networks, frozen
from utils import files, machine
from utils.errors import BadInput
from utils.text import say
from utils.torchrun import Process

DECIDING = (*teachers.INPUTS, "precision")  # flags that say what a student is made from, and in which precision
SHARED = ("device", "dataset", "network", "test_sha256", "teacher_sha256")  # by jobs on the same images and teacher


class Job:
    """A command line on one data set, with its defaults resolved. What costs time is done when it is first needed.

    pair: the networks as the flags say; networks: as the teacher's file says. process: which one of torchrun's this is,
    for a sweep. report: called with each message for the user.
    """

    def __init__(self, args: argparse.Namespace, process: Process | None = None, report: Callable[[str], None] = say):
        self.args = args
        self.process = process or Process()
        self.report = report
        self.report_once = cache(report)
        self._subsets: dict[tuple[int, int], np.ndarray] = {}
        self.last_fitted: tuple[tuple[str, str], list[State]] | None = None  # start from the teacher: of what, blocks
        self.cells_before = 0  # those of other jobs of the command, with which --shard deals them out
        self.name = dataset_name(args.dataset, args.data_path)
        self.data_recipe = RECIPES[args.dataset]
        if args.dataset == "Shapes10" and args.data_path != DATA_PATH:
            raise BadInput("--data_path: not with --dataset Shapes10, whose images are drawn; leave it out")
        if args.optimize_span != "front" and args.method != "grafting":
            raise BadInput(f"--optimize_span {args.optimize_span}: only with --method grafting")
        method = args.method if args.optimize_span == "front" else f"grafting-{args.optimize_span}"
        self.method, self.one_shot_method = METHODS[method], ONE_SHOT.get(method)
        if not self.method.trains and (args.best_of or args.eval_every):
            raise BadInput(f"--best_of and --eval_every: not with --method {method}, which has no epochs to measure")
        self.pair = self._pair()
        self.require_possible(self.method)
        self.image_size = args.image_size or self.pair.image_size
        own_name = not self.pair.is_vgg or self.pair.name not in NETWORKS
        others = [self.pair.name] * own_name + [method] * (method != "grafting")
        self.output_dir = args.output_dir or Path("runs") / "-".join([self.name, *others])
        default_student_dir = args.output_dir / "student" if args.output_dir else Path("ckpt/student")
        self.student_dir = args.student_dir or default_student_dir
        self.teacher_file = teachers.file_of(self)

    def _pair(self) -> Networks:
        """The networks as the flags say: blocks, width, start. A VGG's depth is known when its teacher is read."""
        named = self.args.networks or self.data_recipe.networks
        networks = NETWORKS[named] if named in NETWORKS else own_networks.read(named)
        networks = networks.grafted_at(*self.args.grafted) if self.args.grafted else networks
        return networks.at_width(self.args.student_width).started_from(self.args.start)

    def require_possible(self, method: Method) -> None:
        """Raise BadInput if the method cannot run with these networks, this start or this width."""
        method.require_networks(self.pair)
        if not method.trains and self.args.start != "fresh":
            start = self.args.start
            raise BadInput(f"--start {start}: not with --method {method.name}, which trains nothing; leave it out")
        if not method.has_student and self.args.student_width != STUDENT_WIDTH:
            raise BadInput(f"--student_width: not with --method {method.name}, which has no student; leave it out")

    def announce(self, line: str) -> None:
        """Say once, for all processes, what comes next and takes a while."""
        if self.process.is_first:
            self.report(line)

    @cached_property
    def device(self) -> torch.device:
        return machine.device_named(self.args.device, self.process.local_index)

    @cached_property
    def dataset(self) -> ImageDataset:
        self.announce(f"reading the images of {self.name}")
        sized = {"image_size": self.image_size, "report": self.announce}
        return open_dataset(self.args.dataset, self.args.data_path, **sized)

    @cached_property
    def test_sha256(self) -> str:
        return self.dataset.test().sha256()

    @cached_property
    def subset_seed(self) -> int:
        return self.dataset.subset_seed if self.args.subset_seed is None else self.args.subset_seed

    @cached_property
    def network(self) -> nn.Module:
        """The teacher, frozen, on the device."""
        return frozen(teachers.read(self)).to(self.device, memory_format=torch.channels_last)

    @cached_property
    def networks(self) -> Networks:
        """The teacher's own, whose blocks are checked to fit together."""
        networks = self.pair.of(self.network)
        if self.args.networks and networks.content != self.pair.content:
            raise BadInput(
                f"--networks {self.args.networks}: {self.teacher_file} has other widths; name another teacher"
            )
        return self.require_graftable(networks)

    @property
    def networks_setting(self) -> dict[str, Any]:
        """What a cell's setting says of the networks, besides the teacher's sha256."""
        if self.networks.is_vgg:
            filters = {"choice_of_filters": "most telling"} if self.networks.begins_fitted else {}
            views = {"augmentation": AUGMENTATION} if self.mixes_views else {}
            return {"start": self.networks.start, "student_width": self.networks.student_width, **filters, **views}
        mode = "training mode" if self.networks.trains_batchnorm else "evaluation mode"
        return {**self.networks.content, "start": self.networks.start, "batchnorm": mode}

    @property
    def mixes_views(self) -> bool:
        """Whether the few-shot images are shown in mixed views."""
        return self.method.mixes_views or self.networks.begins_fitted

    def require_graftable(self, networks: Networks) -> Networks:
        """The networks, if they fit together at this size. Raises BadInput."""
        if not networks.is_vgg or self.image_size != networks.image_size:
            own_networks.require_graftable(networks, self.dataset.classes, self.image_size)
        return networks

    @cached_property
    def teacher_sha256(self) -> str:
        """Of the teacher's weights."""
        return checkpoints.weights_sha256(self.network)

    def frozen_teacher(self) -> FrozenTeacher:
        """The teacher with the test set; nothing of it is cached."""
        return FrozenTeacher(self.network, self.networks, self.dataset)

    @cached_property
    def recipe(self) -> Recipe:
        least_views = LEAST_VIEWS if self.networks.begins_fitted else 0
        of_flags = {"blocks": self.networks.grafted, "selects_among": self.args.best_of}
        return replace(self.data_recipe, **of_flags, least_views=least_views)

    def method_at(self, shots: int) -> Method:
        """The method with its numbers for N shots."""
        return self.one_shot_method if shots == 1 and self.one_shot_method else self.method

    def subset(self, shots: int) -> np.ndarray:
        """The few-shot images (shots * classes, 3, stored, stored) uint8."""
        key = (shots, self.subset_seed)
        if key not in self._subsets:
            self._subsets[key] = fewshot.subset(self.dataset, shots, self.subset_seed, self.args.data_path)
        return self._subsets[key]

    def first_images(self, shots: int) -> dict[str, str]:
        """The first few-shot image of each class, alike for every N: other pictures in a Folder change them.

        At 32 pixels its normalisation, of all training pictures, says it already.
        """
        says_it = self.args.dataset != "Folder" or self.image_size == CIFAR_SIZE
        return {} if says_it else {"first_images_sha256": files.sha256(self.subset(shots)[::shots])}

    @cached_property
    def memory(self) -> int:
        """Bytes for the cache of teacher features."""
        usual = machine.memory_to_use(self.device, self.process.local_count, self.args.device)
        return usual if self.args.memory is None else int(self.args.memory * 1e9)

    @property
    def _every_cell(self) -> list[tuple[int, int]]:
        """N and trial of the cells of all shards."""
        trials = range(self.args.trials if self.method.trains else 1)
        return [(shots, trial) for shots in sorted(set(self.args.nshot)) for trial in trials]

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells in the order in which this process takes them: its own share first.

        A method that trains nothing has one trial.
        """
        shard, process = self.args.shard, self.process
        cells = self._every_cell[(shard.index - 1 - self.cells_before) % shard.count :: shard.count]
        own = cells[process.index :: process.count]
        return [Cell(self, *cell) for cell in own + [cell for cell in cells if cell not in own]]

    def in_folders(self, output_dir: Path, student_dir: Path) -> "Job":
        """This job with other folders. Images and teacher are shared."""
        job = copy.copy(self)
        job.output_dir, job.student_dir = output_dir, student_dir
        vars(job).update({name: getattr(self, name) for name in SHARED})
        return job

    def of_subsets(self) -> list["Job"]:
        """A job for each of --subset_seeds, in a folder of its own; without that flag, this job."""
        jobs, beside_results = [], self.student_dir == self.output_dir / "student"
        for seed in sorted(set(self.args.subset_seeds or ())):
            folder = subsets.folder_of(self.output_dir, seed)
            students = folder / "student" if beside_results else subsets.folder_of(self.student_dir, seed)
            job = self.in_folders(folder, students)
            job.subset_seed, job.cells_before = seed, len(jobs) * len(self._every_cell)
            jobs.append(job)
        return jobs or [self]

    def flags(self, *names: str) -> list[str]:
        """The flags for data, networks, teacher and precision, or --dataset and some of them; without defaults."""
        flags = ["--dataset", self.args.dataset]
        for name in names or DECIDING:
            value = getattr(self.args, name)
            flags += [] if value in (None, DATA_PATH, PRECISIONS[0], STUDENT_WIDTH) else [f"--{name}", str(value)]
        return flags
