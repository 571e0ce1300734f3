"""The plain procedure (docs/method.md, sections 2 to 6) that the benchmark compares with: PIL, DataLoader, no cache."""

from __future__ import annotations

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
    """uint8 images (N, 3, side, side) through PIL; without labels, all are 0."""

    def __init__(self, images: np.ndarray, transform: transforms.Compose, labels: np.ndarray | None = None):
        self.images = images.transpose(0, 2, 3, 1)
        self.transform = transform
        self.labels = np.zeros(len(images), np.int64) if labels is None else labels

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


class PlainProcedure:
    """Seconds that an epoch of training and a test evaluation take, phase by phase.

    blocks: the teacher's. Gradients of its weights are computed as in the released code, though nothing uses them.
    """

    def __init__(self, blocks: nn.Sequential, dataset: ImageDataset, few_shot: np.ndarray, shots: int):
        self.blocks = blocks.eval().requires_grad_(True)
        self.device = next(blocks.parameters()).device
        self.shots = shots
        views, test = Views(dataset.image_size), dataset.test()
        usual = [transforms.ToTensor(), transforms.Normalize(dataset.normalization.mean, dataset.normalization.std)]
        crop = transforms.RandomCrop(views.size, padding=views.padding)
        train_set = Pictures(few_shot, transforms.Compose([crop, transforms.RandomHorizontalFlip(), *usual]))
        test_set = Pictures(test.images, transforms.Compose(usual), test.labels)
        self.train_loader = DataLoader(train_set, batch_size(shots), shuffle=True, num_workers=WORKERS)
        self.test_loader = DataLoader(test_set, TEST_BATCH, num_workers=WORKERS)

    def optimizer(self, phase: Phase, scion: nn.Sequential) -> torch.optim.Adam:
        groups = zip(parameters_by_role(scion), phase.learning_rates(self.shots), strict=True)
        return torch.optim.Adam([{"params": parameters, "lr": rate} for parameters, rate in groups])

    def training_epoch(self, phase: Phase, scion: nn.Sequential, optimizer: torch.optim.Adam) -> float:
        """Seconds of one epoch."""
        started = perf_counter()
        scion.train()
        for pictures, _ in self.train_loader:
            images = pictures.to(self.device)
            target = self.blocks(images).detach()
            loss = distance(graft(self.blocks, scion, phase.span, images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        return perf_counter() - started

    @torch.no_grad()
    def evaluation(self, phase: Phase, scion: nn.Sequential) -> float:
        """Seconds of one test accuracy over the whole test set."""
        started = perf_counter()
        scion.eval()
        correct = 0
        for pictures, labels in self.test_loader:
            logits = graft(self.blocks, scion, phase.span, pictures.to(self.device))
            correct += int((logits.argmax(1) == labels.to(self.device)).sum())
        return perf_counter() - started
