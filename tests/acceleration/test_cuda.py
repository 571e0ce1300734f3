"""What runs otherwise on a GPU: captured steps, the feature cache and the test features there, precisions.

Kernels add up in another order than the CPU's: losses are compared to 1e-3.
"""

from functools import partial

import pytest
import torch
from small import frozen_teacher, pictures, short_recipe, small_job, small_training
from torch import nn

from acceleration.cuda_graphs import WARM_UP, GraphedStep
from acceleration.feature_cache import CachedTeacher
from experiments.arguments import PRECISIONS
from grafting.distillation import Distillation
from grafting.scions import scions
from models.networks import vgg
from utils.precision import arithmetic, cache_dtype

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CPU = torch.device("cpu")
CUDA = torch.device("cuda") if torch.cuda.is_available() else CPU  # without a GPU, whole cells still show that all fits


def cached(teacher, dataset, images, precision):
    return CachedTeacher(teacher, vgg(teacher.architecture), dataset, [images], 10**9, cache_dtype(precision))


@pytest.fixture
def losses(teacher, dataset, tmp_path):
    """A function that runs a cell on a device and returns the losses of all its epochs."""

    def run(device, precision="float32", is_cached=True):
        images, network = pictures(12, seed=9), teacher.to(device, memory_format=torch.channels_last)
        job = small_job(tmp_path, "--precision", precision, network=network)
        with arithmetic(precision, device):
            frozen = cached(network, dataset, images, precision) if is_cached else frozen_teacher(network, dataset)
            training = small_training(job, frozen, images, 4)
            training.run()
        return [loss for curve in training.curves.values() for loss in curve.losses]

    return run


def test_a_cell_is_that_of_the_cpu(losses):
    on_cpu = pytest.approx(losses(CPU), rel=1e-3)
    assert losses(CUDA) == on_cpu and losses(CUDA, is_cached=False) == on_cpu


@needs_a_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cell_repeats_to_the_last_bit(losses, precision):
    assert losses(CUDA, precision) == losses(CUDA, precision)


@pytest.mark.parametrize(
    "precision", [p if p == "bfloat16" else pytest.param(p, marks=needs_a_gpu) for p in PRECISIONS]
)
def test_every_precision(losses, precision):
    tolerance = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 0.1}[precision]
    assert losses(CUDA, precision) == pytest.approx(losses(CPU), rel=tolerance)


@pytest.fixture
def distilling(teacher, dataset):
    """A function that begins L=3 on a device: the Distillation, and its step."""

    def begin(device, precision="float32"):
        images = pictures(12)
        frozen = cached(teacher.to(device), dataset, images, precision)
        scion = nn.Sequential(*scions(frozen, torch.Generator().manual_seed(0)))
        run = Distillation(short_recipe().phases[4], scion.to(device), 4)
        return run, partial(run._step, run.scion_and_tail(frozen), len(frozen.blocks), frozen.inputs(images))

    return begin


@needs_a_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_captured_steps_are_the_steps(distilling, precision):
    """Both batch sizes of a subset, well beyond the warm-up."""
    with arithmetic(precision, CUDA):
        (_, plain), (run, step) = distilling(CUDA, precision), distilling(CUDA, precision)
        graphed = GraphedStep(step, run.optimizer)
        random = torch.Generator().manual_seed(0)
        for size in (8, 4) * (WARM_UP + 5):
            image, view = (torch.randint(top, (size,), generator=random).to(CUDA) for top in (12, 162))
            expected = plain(image, view).item()
            assert graphed(image, view).item() == pytest.approx(expected, rel=1e-3 if precision == "float32" else 0.02)
        assert set(graphed.captured) == {8, 4}


@needs_a_gpu
@pytest.mark.parametrize(("before", "after"), [(CPU, CUDA), (CUDA, CPU)])
def test_adam_continues_on_another_device(distilling, before, after):
    image, view = torch.arange(12), torch.arange(12)
    started, step = distilling(before)
    step(image.to(before), view.to(before))
    later, step = distilling(after)
    later.optimizer.load_state_dict(started.optimizer.state_dict())
    step(image.to(after), view.to(after))
    assert {value.device.type for state in later.optimizer.state.values() for value in state.values()} == {after.type}
