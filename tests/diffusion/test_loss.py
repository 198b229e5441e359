"""The loss is EDM's, one number an example, and an example's number is its own."""

import torch

from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from curriculumdp.diffusion.networks import build_unet


def batch(count: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    images = torch.rand(count, 1, 8, 8) * 2 - 1
    sigma = noise_level(torch.randn(count), -1.2, 1.2)
    return images, torch.arange(count) % 3, sigma, torch.randn_like(images)


def test_loss_is_the_papers_in_terms_of_the_networks_target() -> None:
    """λ·(D − y)² is (F − target)², target = (y − c_skip·(y + n))/c_out: equation 8."""
    net, sigma_data = build_unet((8, 16), 8, 1, 3, False, blocks=1), 0.5
    images, labels, sigma, noise = batch(4)
    ours = edm_loss(Denoiser(net, sigma_data), images, labels, sigma, noise)
    s = sigma.view(-1, 1, 1, 1)
    noisy, total = images + s * noise, s**2 + sigma_data**2
    target = (images - sigma_data**2 / total * noisy) / (s * sigma_data / total.sqrt())
    output = net(noisy / total.sqrt(), torch.log(sigma) / 4, class_labels=labels).sample
    torch.testing.assert_close(ours, (output - target).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_an_examples_loss_does_not_depend_on_its_neighbours() -> None:
    net = build_unet((8, 16), 8, 1, 3, False, blocks=1).double()
    images, labels, sigma, noise = batch(4)
    args = images.double(), labels, sigma.double(), noise.double()
    together = edm_loss(Denoiser(net), *args)
    alone = torch.cat([edm_loss(Denoiser(net), *(part[i : i + 1] for part in args)) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)


def test_noise_levels_are_log_normal() -> None:
    levels = noise_level(torch.randn(20_000, generator=torch.Generator().manual_seed(0)), -1.2, 0.7).log()
    assert abs(levels.mean() + 1.2) < 0.02
    assert abs(levels.std() - 0.7) < 0.02
