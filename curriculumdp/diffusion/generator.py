"""A small conditional generator, fitted so that its images have a given mean embedding (DP-MERF, Harder et al. 2021).

For each class k it minimises ‖t_k − s_k·mean z(G(u, k))‖², with t the given embedding, s the classes' shares, u
standard normal and z(x) = [cos Wx, sin Wx]/√F. Input and output are PUBLIC; all draws come from a public seed.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn

LATENT = 60
BATCH = 500  # images per step, the same number of every class
DRAWN_AT_ONCE = 1000
LEARNING_RATE = 0.01  # of Adam, decayed linearly to 0


class Generator(nn.Sequential):
    """A perceptron with two hidden layers: (normals, one-hot label) [B, LATENT + classes] → pixels in (0, 1) [B, d].

    32 hidden units per pixel of height, up to 1024: 1.6 M parameters for ten classes of 28 x 28 grey pixels.
    """

    def __init__(self, classes: int, channels: int, size: int) -> None:
        width = min(32 * size, 1024)
        super().__init__(
            *(nn.Linear(LATENT + classes, width), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, channels * size**2), nn.Sigmoid()),
        )
        self.classes, self.shape = classes, (channels, size, size)

    def images_of(self, labels: Tensor, draws: torch.Generator) -> Tensor:
        """Return an image for each label (int64 [B]), fp32 [B, d], from normals of `draws`, which is on the CPU."""
        device = next(self.parameters()).device
        normals = torch.randn(len(labels), LATENT, generator=draws).to(device)
        one_hot = nn.functional.one_hot(labels, self.classes).to(device, torch.float32)
        images: Tensor = self(torch.cat([normals, one_hot], dim=1))
        return images


def fit_generator(
    target: Tensor,
    waves: Tensor,
    shares: Tensor,
    shape: tuple[int, int],
    *,
    steps: int,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
) -> Generator | None:
    """Return a generator of images (channels, size) = `shape` with the mean embedding `target`; None if told to stop.

    target fp32 [classes, 2F]: per class, its share times its images' mean z. waves fp32 [d, F]: Wᵀ in radians, for
    pixels in [0, 1]. shares fp32 [classes], summing to 1. All on one device. `stop` is asked before each step.
    """
    classes, device = len(shares), target.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(classes, *shape).to(device)
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(max(4, BATCH // classes // 2 * 2))
    adam = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        if stop():
            return None
        for group in adam.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        loss = _squared_distance(generator.images_of(labels, draws), waves, target, shares)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return generator.eval()


def _squared_distance(images: Tensor, waves: Tensor, target: Tensor, shares: Tensor) -> Tensor:
    """Return an unbiased estimate of Σ_k ‖t_k − s_k·mean z‖², from two independent halves of the images of each class.

    With one mean for both factors, the batch's own variance would be added, and less varied images would seem better.
    """
    angles = images @ waves
    embedded = torch.cat([angles.cos(), angles.sin()], dim=1) / sqrt(waves.shape[1])
    halves = embedded.view(len(shares), 2, -1, target.shape[1]).mean(2) * shares[:, None, None]
    return ((target - halves[:, 0]) * (target - halves[:, 1])).sum()


@torch.no_grad()
def draw_images(generator: Generator, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` images uint8 [count, C, H, W] and their labels int64 [count], which go round all classes."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % generator.classes
    parts = [generator.images_of(part, draws).cpu() for part in labels.split(DRAWN_AT_ONCE)]
    pixels = (torch.cat(parts) * 255).round().to(torch.uint8)
    return pixels.view(count, *generator.shape), labels
