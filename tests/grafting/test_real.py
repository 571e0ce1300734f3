"""On real images, with a real teacher: nothing that makes a cell fast changes it."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from torch import nn

from acceleration.feature_cache import CachedTeacher
from data.datasets import LabelledImages, open_dataset
from data.fewshot import subset
from experiments import results
from grafting.distillation import Distillation, train
from grafting.inputs import Inputs
from grafting.recipes import CIFAR10
from grafting.scions import scions
from grafting.teacher import FrozenTeacher
from models import checkpoints
from models.networks import vgg

TESTS = 2000


@pytest.mark.slow
def test_a_few_epochs_with_the_cache_and_without(real_data, real_teachers, tmp_path):
    """The same draws: the losses of the plain procedure to 1e-4, and predictions that are the same.

    The plain losses are in float64, because Adam's first steps amplify rounding: in the fifth epoch of L=2, on one
    thread, the network itself in float32 differs from it by 4e-4, and the matrix products by 4e-7.
    """
    dataset = open_dataset("CIFAR10", real_data("CIFAR10"))
    images, every = subset(dataset, 1, dataset.subset_seed, tmp_path), dataset.test()
    test = LabelledImages(every.images[:TESTS], every.labels[:TESTS])
    dataset = replace(dataset, test=lambda: test)
    network = checkpoints.read_teacher(real_teachers / "vgg16-blockwise-cifar10.pth", 10)
    networks = vgg(network.architecture)
    plain, exact = (FrozenTeacher(copy.deepcopy(network), networks, dataset) for _ in range(2))
    exact.network.double()
    exact.normalization = lambda images: dataset.normalization(images).double()
    cached = CachedTeacher(network, networks, dataset, [images], 10**9)
    for phase in CIFAR10.phases:
        first, last = (start - 3 for start in phase.span)
        losses, runs = [], []
        for teacher, inputs in ((exact, Inputs(exact, images)), (cached, cached.inputs(images))):
            scion = nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0))[first:last])
            runs.append(Distillation(phase, scion.to(next(teacher.network.parameters()).dtype), 1))
            step, random = runs[-1].step_on(inputs), torch.Generator().manual_seed(1)
            views = torch.randint(162, (5, 10), generator=random)
            losses.append([train(step, torch.arange(10), view, 6) for view in views])
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        graft = runs[1].scion_and_tail(cached)
        assert torch.equal(cached.predictions(graft, phase.span[0]), plain.predictions(graft, phase.span[0]))


@pytest.mark.slow
def test_committed_results_name_the_teachers_weights(real_teachers):
    network = checkpoints.read_teacher(real_teachers / "vgg16-blockwise-cifar100.pth", 100)
    found = results.read_all(ROOT / "benchmarks/results/CIFAR100-first-teacher")
    assert {result["setting"]["teacher_sha256"] for result in found} == {checkpoints.weights_sha256(network)}
