"""The plain procedure (docs/method.md, sections 2 to 6) that the benchmark compares with: PIL, DataLoader, no cache."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data.datasets import ImageDataset
from data.views import Views
from grafting.distillation import distance
from grafting.recipes import Phase, batch_size
from grafting.scions import graft, parameters_by_role

WORKERS = 4  # as in the released code
TEST_BATCH = 256


class Pictures(Dataset):
    """uint8 images (N, 3, side, side) through PIL, with their labels (N,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *transform: Callable):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(transform)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index].transpose(1, 2, 0))), self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


def loaders(dataset: ImageDataset, few_shot: np.ndarray, shots: int) -> tuple[DataLoader, DataLoader]:
    """Of the few-shot images and of the test set."""
    views, test, no_labels = Views(dataset.image_size), dataset.test(), np.zeros(len(few_shot), np.int64)
    usual = [transforms.ToTensor(), transforms.Normalize(dataset.normalization.mean, dataset.normalization.std)]
    crop = transforms.RandomCrop(views.size, padding=views.padding)
    train_set = Pictures(few_shot, no_labels, crop, transforms.RandomHorizontalFlip(), *usual)
    test_set = Pictures(test.images, test.labels, *usual)
    training = DataLoader(train_set, batch_size(shots), shuffle=True, num_workers=WORKERS)
    return training, DataLoader(test_set, TEST_BATCH, num_workers=WORKERS)


def training_epoch(blocks: nn.Sequential, scion: nn.Sequential, phase: Phase, shots: int, loader: DataLoader) -> float:
    """Seconds of one epoch.

    blocks: the teacher's. Gradients of its weights are computed as in the released code, though nothing uses them.
    """
    started, device = perf_counter(), next(blocks.parameters()).device
    groups = zip(parameters_by_role(scion), phase.learning_rates(shots), strict=True)
    optimizer = torch.optim.Adam([{"params": parameters, "lr": rate} for parameters, rate in groups])
    blocks.requires_grad_(True)
    scion.train()
    for batch, _ in loader:
        images = batch.to(device)
        target = blocks(images).detach()
        loss = distance(graft(blocks, scion, phase.span, images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return perf_counter() - started


@torch.no_grad()
def evaluation(blocks: nn.Sequential, scion: nn.Sequential, phase: Phase, loader: DataLoader) -> float:
    """Seconds of one test accuracy over the whole test set."""
    started, device, correct = perf_counter(), next(blocks.parameters()).device, 0
    scion.eval()
    for images, labels in loader:
        logits = graft(blocks, scion, phase.span, images.to(device))
        correct += int((logits.argmax(1) == labels.to(device)).sum())
    return perf_counter() - started
