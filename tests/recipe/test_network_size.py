"""Parameters and operations by arithmetic are those of the network that diffusers builds."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from curriculumdp.config.config import load_config
from curriculumdp.diffusion.networks import build_unet
from curriculumdp.recipe.network_size import PASSES_PER_STEP, network_size

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
OTHERS = [
    ((8, 16, 32, 24), 64, 3, 41, 1, (16, 8)),
    ((16,), 9, 1, 2, 3, ()),
    ((24, 8), 20, 3, 1, 2, (20, 10)),
]


@pytest.mark.parametrize("file", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_a_shipped_network_has_the_size_that_is_computed(file: Path) -> None:
    config = load_config(file)
    model, data = config.model, config.data
    agree(model.channels, data.size, data.channels, data.classes + 1, model.blocks, model.attention)


@pytest.mark.parametrize("network", OTHERS)
def test_any_network_has_the_size_that_is_computed(network) -> None:
    agree(*network)


def agree(channels, size, image_channels, embedded, blocks, attention) -> None:
    with torch.device("meta"):
        net = build_unet(
            channels, size, image_channels, embedded, null_class=False, blocks=blocks, attention=attention, groups=4
        )  # fmt: skip
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, image_channels, size, size), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    found = network_size(channels, size, image_channels, embedded, blocks=blocks, attention=attention)
    assert found.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert found.flop_per_image == PASSES_PER_STEP * counter.get_total_flops()
