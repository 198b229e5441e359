"""What the engine's tests share: diffusers' own U-Nets, small, and the oracle."""

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

LossOf = Callable[[nn.Module, slice], Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def unet(
    channels: tuple[int, ...], size: int = 8, image_channels: int = 1, attention: bool = True
) -> UNet2DModel:
    """A class-conditional U-Net as the curriculum trains it: groups of 4 channels, 3 classes and a null class."""
    down = ["DownBlock2D"] * (len(channels) - 1) + ["AttnDownBlock2D" if attention else "DownBlock2D"]
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=image_channels,
        out_channels=image_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)],
        norm_num_groups=min(channels) // 4,
        attention_head_dim=4,
        num_class_embeds=4,
        add_attention=attention,
    )


def denoising_loss(
    net: UNet2DModel, samples: int, dtype: torch.dtype = torch.float32, seed: int = 1
) -> LossOf:
    """loss(net, slice) -> the squared error of each sample in the slice, [n]; the samples are fixed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, net.config.in_channels, net.config.sample_size, net.config.sample_size)
    x, noise = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    time = torch.randn(samples, generator=generator).to(dtype)
    labels = torch.arange(samples) % 4

    def loss(net: nn.Module, which: slice) -> Tensor:
        predicted: Tensor = net(x[which], time[which], labels[which]).sample
        return (predicted - noise[which]).square().mean((1, 2, 3))

    return loss


def oracle(net: nn.Module, loss: LossOf, units: int, draws: int) -> dict[str, Tensor]:
    """Autograd's gradients, one unit at a time: name -> [units, *shape]."""
    rows: list[dict[str, Tensor]] = []
    for unit in range(units):
        net.zero_grad()
        loss(net, slice(unit * draws, (unit + 1) * draws)).mean().backward()
        rows.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    net.zero_grad()
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
