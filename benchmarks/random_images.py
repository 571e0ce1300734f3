"""train_fskd.py on random images with a random teacher: without any file, as fast, with accuracies that mean nothing.

    python -m benchmarks.random_images --dataset CIFAR10 --nshot 10 --trials 1 --output_dir runs/random

Takes the flags of train_fskd.py for a sweep. There are as many images and classes as in the CIFARs. With --reduced
there are few images, and one epoch in each phase.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from data.datasets import ImageDataset, LabelledImages
from data.views import Normalization
from experiments import sweep
from experiments.commands import require_sweep
from experiments.job import Job
from models.networks import frozen, initialize
from train_fskd import command_line
from utils.errors import BadInput


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 a cell failed, 2 bad input."""
    parser = command_line("benchmarks.random_images", __doc__)
    parser.add_argument("--reduced", action="store_true", help="few images and epochs")
    args = parser.parse_args(argv)
    try:
        require_sweep(args)
        job = Job(args)
        randomize(job, args.reduced)
        sweep.run([job])
    except BadInput as error:
        sys.stderr.write(f"benchmarks.random_images: {error}\n")
        return 2
    return int(sweep.any_failed([job]))


def randomize(job: Job, reduced: bool) -> None:
    """Give the job random images and a random teacher. reduced: few images, and one epoch in each phase."""
    counts = (200, 100) if reduced else (50_000, 10_000)
    job.dataset = dataset(job.name, 100 if job.name == "CIFAR100" else 10, *counts)
    network = job.pair.teacher(job.dataset.classes)
    initialize(network, torch.Generator().manual_seed(0))
    job.network = frozen(network).to(job.device, memory_format=torch.channels_last)
    if reduced:
        job.data_recipe = replace(job.data_recipe, stage1_epochs=(1,), stage2_epochs=(1,))


def dataset(name: str, classes: int, train_count: int, test_count: int) -> ImageDataset:
    """Random images of 32x32 pixels, of each class as many."""
    random = np.random.default_rng(0)
    train, test = (
        LabelledImages(random.integers(0, 256, (count, 3, 32, 32), np.uint8), np.arange(count) % classes)
        for count in (train_count, test_count)
    )
    names, normalization = tuple(map(str, range(classes))), Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return ImageDataset(name, classes, normalization, 6, False, lambda: train, lambda: test, lambda: names)


if __name__ == "__main__":
    sys.exit(main())
