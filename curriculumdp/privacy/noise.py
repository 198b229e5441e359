"""The grid that sums live on, and the noise on it (design D3).

A clipped contribution is rounded to integers, n = rint(g·2³⁶/C), unit by unit, and integers are summed: exact,
hence independent of order, packing and ranks. Clipping aims at C(1 − 2⁻¹²); the margin is larger than anything
that rounding can add, so that Σn² ≤ 2⁷² for every unit and the sensitivity is C. The Gaussian is rounded to the
same grid and added as integers: the result is the rounding of the exact mechanism's output, and low bits of
floating point give nothing away (Mironov 2012).
"""

import numpy as np
import torch
from torch import Tensor

from curriculumdp.privacy.randomness import gaussian

GRID_BITS = 36
AIM = 1.0 - 2.0**-12
LARGEST_NORMAL = 9.7  # sqrt(2·ln 2⁶⁵) = 9.49: what `gaussian` can return at most


class GridError(ValueError):
    """A sum or a noise that the grid's integers could not hold exactly."""


def check_capacity(units: int, noise_multiplier: float) -> None:
    """Raises GridError unless `units` clipped units and their noise fit int64, and the noise fits float64 exactly."""
    noise = noise_multiplier * LARGEST_NORMAL * 2.0**GRID_BITS
    if noise >= 2.0**53 or units * 2.0**GRID_BITS + noise >= 2.0**63:
        raise GridError(
            f"{units} units with noise multiplier {noise_multiplier:g} do not fit the grid of 2**{GRID_BITS}: "
            "at most 2**26 units and a multiplier of 10000"
        )


def clip_and_sum(vectors: Tensor, clip_norm: float, present: Tensor) -> Tensor:
    """PRIVATE: int64 [P], the sum of the present units' vectors, each clipped to `clip_norm` and rounded.

    vectors float64 [B, P], present bool [B]. Formal guarantee: taking one unit out changes the sum by an integer
    vector n with Σn² ≤ 2⁷², that is by at most C. | norm 0: contributes 0 | ≤ C·AIM: unchanged | larger: scaled
    to C·AIM | infinite or NaN, or absent: exactly 0 |.
    """
    norms = torch.linalg.vector_norm(vectors, dim=1)
    factors = torch.where(norms > clip_norm * AIM, clip_norm * AIM / norms, torch.ones_like(norms))
    kept = present & torch.isfinite(norms)
    scaled = vectors * (factors * (2.0**GRID_BITS / clip_norm))[:, None]
    return torch.where(kept[:, None], scaled.round(), 0.0).to(torch.int64).sum(0)


def add_noise(total: Tensor, noise_multiplier: float, key: bytes) -> Tensor:
    """int64 [P]: `total` plus a Gaussian of standard deviation σ·2³⁶ grid steps (σC), rounded to the grid.

    The noise is a function of `key` alone, hence identical on every rank; it must be added once. After this the
    sum is no longer private.
    """
    noise = np.rint(gaussian(key, total.numel()) * (noise_multiplier * 2.0**GRID_BITS))
    return total + torch.from_numpy(noise.astype(np.int64)).to(total.device).view(total.shape)


def from_grid(noisy: Tensor, clip_norm: float) -> Tensor:
    """float64: what an integer sum means, n·C/2³⁶."""
    return noisy.double() * (clip_norm / 2.0**GRID_BITS)
