"""Sampling: from noise to images, by diffusers' EDM schedulers or by EDM's own Heun."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DModel
from torch import Tensor
from tqdm import tqdm

from curriculumdp.diffusion.denoiser import Denoiser

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # Karras et al. 2022, table 1
# Heun is EDM's algorithm 1 (below) over the noise levels that diffusers' Euler scheduler lays out.
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "dpm": EDMDPMSolverMultistepScheduler,
    "euler": EDMEulerScheduler,
    "heun": EDMEulerScheduler,
}


class SamplingError(ValueError):
    """What cannot be sampled: an unknown sampler, no steps, a network that gives no finite image."""


def build_scheduler(sampler: str, sigma_data: float) -> Any:
    """The diffusers scheduler of a sampler (dpm, euler, heun) with EDM's noise levels, or SamplingError."""
    if sampler not in SCHEDULERS:
        raise SamplingError(f"no sampler {sampler!r}: choose among {', '.join(SCHEDULERS)}")
    return SCHEDULERS[sampler](sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=sigma_data, rho=RHO)


@torch.no_grad()
def sample_images(
    net: UNet2DModel,
    labels: Tensor,
    *,
    steps: int,
    sampler: str,
    sigma_data: float,
    generator: torch.Generator,
    batch: int = 256,
) -> np.ndarray:
    """uint8 [N, H, W, C] images, one for each of `labels` (int64 [N]), on whatever device `net` is.

    `generator` (a CPU one) gives the initial noise, image by image, so that neither the device nor `batch`
    changes which noise an image starts from. Public, if the weights are. Raises SamplingError.
    """
    if steps < 2:
        raise SamplingError(f"{steps} sampling steps: give at least 2 (one step gives the mean image)")
    build_scheduler(sampler, sigma_data)  # an unknown name ends here, labels or none
    config = net.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    parts = [np.zeros((0, shape[1], shape[2], shape[0]), np.uint8)]
    bar = tqdm(total=len(labels), desc="sampling", unit="image", leave=False, disable=None)
    for start in range(0, len(labels), batch):
        some = labels[start : start + batch]
        noise = torch.stack([torch.randn(shape, generator=generator) for _ in some])
        parts.append(
            _to_uint8(denoise(net, noise, some, steps=steps, sampler=sampler, sigma_data=sigma_data))
        )
        bar.update(len(some))
    bar.close()
    return np.concatenate(parts)


def denoise(
    net: UNet2DModel, noise: Tensor, labels: Tensor, *, steps: int, sampler: str, sigma_data: float
) -> Tensor:
    """Images float [N, C, H, W], in [−1, 1] as trained, from `noise` (standard normal, of that shape)."""
    scheduler = build_scheduler(sampler, sigma_data)
    scheduler.set_timesteps(steps)
    x, labels = (noise * scheduler.init_noise_sigma).to(net.device), labels.to(net.device)
    if sampler == "heun":
        return heun(Denoiser(net, sigma_data), x, labels, scheduler.sigmas)
    for t in scheduler.timesteps:
        output = net(scheduler.scale_model_input(x, t), t, class_labels=labels, return_dict=False)[0]
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


def heun(denoiser: Denoiser, x: Tensor, labels: Tensor, sigmas: Tensor) -> Tensor:
    """Images [N, C, H, W] from x ~ N(0, σ₀²): EDM's algorithm 1, no churn, over `sigmas` descending to 0."""
    for sigma, lower in zip(sigmas.tolist(), sigmas.tolist()[1:], strict=False):
        slope = (x - denoiser(x, x.new_full((len(x),), sigma), labels)) / sigma
        euler = x + (lower - sigma) * slope
        if lower > 0:
            slope_there = (euler - denoiser(euler, x.new_full((len(x),), lower), labels)) / lower
            x = x + (lower - sigma) * (slope + slope_there) / 2
        else:
            x = euler
    return x


def _to_uint8(images: Tensor) -> np.ndarray:
    if not torch.isfinite(images).all():
        raise SamplingError("the network gives images that are not finite: its training diverged")
    pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def balanced_labels(classes: list[int], count: int) -> Tensor:
    """int64 [count]: the classes in turn, so that their numbers differ by at most one."""
    return torch.tensor(classes, dtype=torch.int64).repeat(-(-count // len(classes)))[:count]
