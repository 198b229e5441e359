"""EDM's training loss, one number per example (Karras et al., NeurIPS 2022, equation 8)."""

import torch
from torch import Tensor

from curriculumdp.diffusion.denoiser import Denoiser


def noise_level(normal: Tensor, p_mean: float, p_std: float) -> Tensor:
    """Return noise levels σ of `normal`'s shape (standard normals), such that ln σ ~ N(p_mean, p_std²)."""
    return torch.exp(p_mean + p_std * normal)


def edm_loss(denoiser: Denoiser, images: Tensor, labels: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return per-example losses [N]: λ(σ)·mean over pixels of (D(y + σn; σ) − y)², λ(σ) = (σ² + σd²)/(σ·σd)².

    images: y, float [N, C, H, W] in [−1, 1]; noise: n, of the same shape; sigma: [N]; labels: int64 [N]. An
    example's loss depends on its own row alone. As private as the images.
    """
    s = sigma.to(images.dtype).view(-1, 1, 1, 1)
    error = denoiser(images + s * noise, sigma, labels) - images
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return weight.to(images.dtype) * error.square().flatten(1).mean(1)
