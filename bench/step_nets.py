"""The networks and microbatches that bench_step.py times, with the loss that training uses."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from curriculumdp.diffusion.networks import build_unet

CLASSES = 10
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Net:
    """A U-Net's arguments of `build_unet`, and the number of units in its microbatch."""

    size: int
    image_channels: int
    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    units: int


CPU_NETS = {
    "28px-0.7M": Net(28, 1, (32, 64), 1, (14,), 16),
    "8px-0.4M": Net(8, 1, (24, 48), 1, (4,), 64),
}
GPU_NETS = {
    "28px-1.6M": Net(28, 1, (64, 64), 2, (14,), 64),  # configs/fashion_mnist_eps1.yaml
    "32px-36M": Net(32, 3, (128, 256, 256, 256), 2, (16,), 16),
    "64px-25M": Net(64, 3, (64, 128, 256, 256), 2, (16,), 16),
}
# For the rehearsal of measure_gpu.py: nothing is learned from its times.
REHEARSAL_NETS = {"rehearsal": Net(8, 1, (8, 16), 1, (4,), 3)}
NETS = CPU_NETS | GPU_NETS | REHEARSAL_NETS


@dataclass(frozen=True)
class Microbatch:
    """A network and `units`·`draws` random samples, a unit's draws contiguous; every way gets its own copy.

    images and noise [N, C, H, W], labels int64 [N], sigma [N].
    """

    net: nn.Module
    units: int
    draws: int
    bf16: bool
    images: Tensor
    labels: Tensor
    sigma: Tensor
    noise: Tensor

    @property
    def device(self) -> torch.device:
        """Return the device of the samples."""
        return self.images.device

    def precision(self) -> AbstractContextManager[object]:
        """Return a bf16 autocast context, disabled unless bf16 is timed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def losses(self, net: nn.Module | None = None) -> Tensor:
        """Return the loss of each sample [N] under `net` (default: the microbatch's own)."""
        with self.precision():
            return edm_loss(
                Denoiser(self.net if net is None else net), self.images, self.labels, self.sigma, self.noise
            )

    def unit_losses(self) -> Tensor:
        """Return the loss of each unit [B], the mean over its draws."""
        return self.losses().view(self.units, self.draws).mean(1)


def microbatch(net: Net, draws: int, device: torch.device, bf16: bool) -> Microbatch:
    """Return a microbatch of `net` on `device`, with the same weights and samples on every call."""
    torch.manual_seed(0)
    module = build_unet(
        net.channels, net.size, net.image_channels, CLASSES, False, blocks=net.blocks, attention=net.attention
    ).to(device)
    samples = net.units * draws
    shape = (samples, net.image_channels, net.size, net.size)
    # Tensor cores want bf16 in channels_last; on a CPU, training uses contiguous images.
    layout = torch.channels_last if bf16 else torch.contiguous_format
    to_device = partial(torch.Tensor.to, device=device)
    images, noise = (to_device(torch.randn(shape)).contiguous(memory_format=layout) for _ in range(2))
    labels, sigma = (
        to_device(torch.arange(samples) % CLASSES),
        to_device(noise_level(torch.randn(samples), -1.2, 1.2)),
    )
    module = module.to(memory_format=layout) if bf16 else module
    return Microbatch(module, net.units, draws, bf16, images.clamp(-1, 1), labels, sigma, noise)
