"""Sampling of images from noise, with diffusers' EDM schedulers or EDM's own Heun solver, with or without churn."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DModel
from torch import Tensor
from tqdm import tqdm

from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.errors import UserError

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # Karras et al. 2022, table 1
# Algorithm 2's S_churn, S_tmin, S_tmax and S_noise: the values for ImageNet in EDM's table 5.
CHURN, CHURN_FROM, CHURN_TO, CHURN_NOISE = 40.0, 0.05, 50.0, 1.003


class SamplingError(UserError):
    """A request that cannot be sampled: an unknown sampler, too few steps, a network with non-finite output."""


def build_scheduler(kind: Callable[..., Any], sigma_data: float) -> Any:
    """Return a diffusers scheduler, of the class `kind`, with EDM's noise levels."""
    return kind(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=sigma_data, rho=RHO)


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
    """Sample one image for each of `labels` (int64 [N]) on `net`'s device; return uint8 [N, H, W, C].

    `generator`, on the CPU, produces all noise image by image, so an image's noise does not depend on the device
    or on `batch`. PUBLIC if the weights are. Raises SamplingError.
    """
    if steps < 2:
        raise SamplingError(f"{steps} sampling steps: use at least 2 (one step gives the mean image)")
    if sampler not in SAMPLERS:
        raise SamplingError(f"no sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
    config = net.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    normals = SAMPLERS[sampler].normals(steps)
    parts = [np.zeros((0, shape[1], shape[2], shape[0]), np.uint8)]
    bar = tqdm(total=len(labels), desc="sampling", unit="image", leave=False, disable=None)
    for start in range(0, len(labels), batch):
        some = labels[start : start + batch]
        noise = torch.stack([torch.randn((normals, *shape), generator=generator) for _ in some], dim=1)
        parts.append(
            _to_uint8(denoise(net, noise, some, steps=steps, sampler=sampler, sigma_data=sigma_data))
        )
        bar.update(len(some))
    bar.close()
    return np.concatenate(parts)


def denoise(
    net: UNet2DModel, noise: Tensor, labels: Tensor, *, steps: int, sampler: str, sigma_data: float
) -> Tensor:
    """Turn noise into images, float [N, C, H, W], in [−1, 1] as trained.

    noise: standard normal [D, N, C, H, W], of which the first SAMPLERS[sampler].normals(steps) are used. Each image
    starts from noise[0]; a sampler that adds fresh noise takes one more per step. labels: int64 [N].
    """
    chosen = SAMPLERS[sampler]
    used = noise[: chosen.normals(steps)].to(net.device)
    return chosen.denoise(net, used, labels.to(net.device), steps, sigma_data)


def _by_scheduler(
    kind: Callable[..., Any], net: UNet2DModel, noise: Tensor, labels: Tensor, steps: int, sigma_data: float
) -> Tensor:
    """Denoise by a diffusers scheduler, one evaluation of the network per step."""
    scheduler = build_scheduler(kind, sigma_data)
    scheduler.set_timesteps(steps)
    x = noise[0] * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = net(scheduler.scale_model_input(x, t), t, class_labels=labels, return_dict=False)[0]
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


def _by_heun(net: UNet2DModel, noise: Tensor, labels: Tensor, steps: int, sigma_data: float) -> Tensor:
    """Denoise by EDM's algorithm 1 or, given a fresh normal per step, 2, over the Euler scheduler's noise levels."""
    scheduler = build_scheduler(EDMEulerScheduler, sigma_data)
    scheduler.set_timesteps(steps)
    x = noise[0] * scheduler.init_noise_sigma
    return heun(Denoiser(net, sigma_data), x, labels, scheduler.sigmas, noise[1:])


def heun(denoiser: Denoiser, x: Tensor, labels: Tensor, sigmas: Tensor, fresh: Tensor) -> Tensor:
    """Denoise x ~ N(0, σ₀²) over `sigmas`, which descend to 0, by EDM's algorithm 1 or 2; return [N, C, H, W].

    With `fresh` standard normals [steps, N, C, H, W] (algorithm 2), a step whose noise level is in
    [S_tmin, S_tmax] first raises it by the factor 1 + γ, γ = min(S_churn/steps, √2 − 1). With `fresh` empty, this
    is algorithm 1.
    """
    levels = sigmas.tolist()
    steps = len(levels) - 1
    gamma = min(CHURN / steps, 2**0.5 - 1) if len(fresh) else 0.0
    for step in range(steps):
        sigma, lower = levels[step], levels[step + 1]
        if gamma and CHURN_FROM <= sigma <= CHURN_TO:
            raised = sigma * (1 + gamma)
            x = x + (raised**2 - sigma**2) ** 0.5 * CHURN_NOISE * fresh[step]
            sigma = raised
        slope = (x - denoiser(x, x.new_full((len(x),), sigma), labels)) / sigma
        euler = x + (lower - sigma) * slope
        if lower > 0:
            slope_there = (euler - denoiser(euler, x.new_full((len(x),), lower), labels)) / lower
            x = x + (lower - sigma) * (slope + slope_there) / 2
        else:
            x = euler
    return x


@dataclass(frozen=True)
class Sampler:
    """denoise(net, noise, labels, steps, sigma_data) -> images; fresh: whether it takes another normal per step."""

    denoise: Callable[[UNet2DModel, Tensor, Tensor, int, float], Tensor]
    fresh: bool = False

    def normals(self, steps: int) -> int:
        """Return the number D of standard normals per pixel that `denoise` takes."""
        return 1 + steps if self.fresh else 1


SAMPLERS: dict[str, Sampler] = {
    "dpm": Sampler(partial(_by_scheduler, EDMDPMSolverMultistepScheduler)),
    "heun": Sampler(_by_heun),
    "euler": Sampler(partial(_by_scheduler, EDMEulerScheduler)),
    "churn": Sampler(_by_heun, fresh=True),
}


def _to_uint8(images: Tensor) -> np.ndarray:
    if not torch.isfinite(images).all():
        raise SamplingError("the network gives images that are not finite: its training diverged")
    pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def balanced_labels(classes: list[int], count: int) -> Tensor:
    """Return int64 [count] labels that cycle through the classes, so that class counts differ by at most one."""
    return torch.tensor(classes, dtype=torch.int64).repeat(-(-count // len(classes)))[:count]
