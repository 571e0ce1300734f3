"""The frozen teacher: features in front of a block, logits, and test predictions.

Here everything is computed at every call: this is the reference. `acceleration/feature_cache.py` returns the same from
memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from data.datasets import ImageDataset
from data.views import TEST_BATCH, Views, images_at_once
from models.logits import finite
from models.networks import Networks, frozen, output_shapes


class FrozenTeacher:
    """The frozen teacher, and the test set, whose labels only count accuracy.

    network: the teacher, on its device; it is frozen here. blocks: its blocks (models/networks.py). shapes: of one
    image's features in front of each block, the logits' last.
    """

    def __init__(self, network: nn.Module, networks: Networks, dataset: ImageDataset):
        self.network = frozen(network)
        self.networks = networks
        self.blocks = networks.cut(network)
        self.device = next(network.parameters()).device
        self.normalization = dataset.normalization
        self.image_size = dataset.image_size
        self.views = Views(self.image_size)
        self.front_batch = images_at_once(TEST_BATCH, self.image_size)  # test images that go through it together
        self.shapes = output_shapes(self.blocks, self.image_size)
        self.test = dataset.test()
        self.test_labels = torch.from_numpy(self.test.labels).to(self.device)  # (N,)

    @property
    def classes(self) -> int:
        return self.shapes[-1][0]

    @torch.no_grad()
    def test_batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set as (features (B, C, H, W), labels (B,))."""
        for images, labels in self.test.batches(self.front_batch):
            yield self.blocks[:start](self.normalization(images.to(self.device))), labels.to(self.device)

    @torch.no_grad()
    def predictions(self, network: nn.Module, start: int) -> Tensor:
        """The test set's classes (N,), as `network` predicts them from the features at `start`.

        Raises LogitsNotFinite.
        """
        return torch.cat([finite(network(features)).argmax(1) for features, _ in self.test_batches(start)])

    def accuracy(self, network: nn.Module, start: int) -> float:
        """Test accuracy in percent of `network` on the features at `start`. Raises LogitsNotFinite."""
        return 100 * int((self.predictions(network, start) == self.test_labels).sum()) / len(self.test_labels)
