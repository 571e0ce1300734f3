"""ResNets cut at their stages; linear maps put into blocks."""

import pytest
import torch

from models.networks import NETWORKS, frozen, initialize, output_shapes, resnet_of
from models.resnet import absorb, cut


def random_resnet(name: str = "resnet10", classes: int = 3):
    return frozen(initialize(resnet_of(name, classes), torch.Generator().manual_seed(0)))


def test_the_blocks_are_the_network():
    network, images = random_resnet(), torch.randn(2, 3, 64, 64)
    blocks = cut(network)
    assert torch.equal(blocks(images), network(images))
    assert {id(p) for p in blocks.parameters()} == {id(p) for p in network.parameters()}
    shapes = [(3, 64, 64), (64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (3,)]
    assert output_shapes(blocks, 64) == shapes


@pytest.mark.parametrize("block", (2, 3, 4, 5))
def test_a_map_of_channels_is_absorbed_by_the_block_behind_it(block):
    blocks = cut(random_resnet())
    channels = output_shapes(blocks, 64)[block][0]
    matrix, features = torch.randn(channels, 7) / 7, torch.randn(2, 7, 8, 8)
    expected = blocks[block](torch.einsum("ci,bihw->bchw", matrix, features))
    assert absorb(blocks[block], matrix.double())
    assert torch.allclose(blocks[block](features), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_a_stage_without_downsample_adds_its_input_as_it_is():
    blocks = cut(random_resnet())
    before = blocks[1][0].conv1.weight.clone()
    assert not absorb(blocks[1], torch.eye(64).double())
    assert torch.equal(blocks[1][0].conv1.weight, before)


def test_widths_at_every_cut_of_the_papers_networks_agree():
    networks = NETWORKS["resnet34-resnet18"]
    with torch.device("meta"):
        ours, theirs = (frozen(networks.cut(make(1000))) for make in (networks.student, networks.teacher))
        assert output_shapes(ours, 224) == output_shapes(theirs, 224)
        stages = [sum(p.numel() for p in blocks[3].parameters()) for blocks in (theirs, ours)]
    assert stages == [6_822_400, 2_099_712]  # of layer3; the paper: 69.2% fewer
