"""Noise on the integer grid: Gaussian noise is added once to an exact sum of clipped vectors.

`clipping.clip.add_clipped_rows` makes each unit's vector integers of L2 norm at most 2³⁶, the clip norm C on the grid.
Noise is rounded to the same grid: what is released is a rounding of the exact mechanism's output, so the low bits of
floating point reveal nothing (Mironov, CCS 2012).
"""

import math

import torch
from torch import Tensor

from curriculumdp.errors import UserError
from curriculumdp.privacy.streams import gaussian
from dpkernels.grid import GRID, GRID_BITS

# √(2 ln 2⁶⁵) = 9.493 is the largest magnitude that `gaussian` returns.
MAX_NORMAL = 9.5


class NoiseError(UserError):
    """A noise multiplier or number of units that the grid cannot represent."""


def check_capacity(units: int, noise_multiplier: float) -> None:
    """Raise NoiseError unless a sum of `units` clipped vectors plus its noise fits exactly into int64.

    Requires σ·9.5·2³⁶ < 2⁵³ (so that float64 noise is exact on the grid) and units·2³⁶ plus that noise < 2⁶³.
    """
    noise = _noise_scale(noise_multiplier) * MAX_NORMAL
    if units < 0 or units * 2**GRID_BITS + math.ceil(noise) >= 2**63:
        limit = (2**63 - math.ceil(noise) - 1) // 2**GRID_BITS
        raise NoiseError(f"{units} units are more than an exact sum can hold: use at most {limit} units")


def _noise_scale(noise_multiplier: float) -> float:
    limit = 2.0**53 / GRID / MAX_NORMAL
    if not 0 < noise_multiplier < limit:
        raise NoiseError(f"noise multiplier {noise_multiplier} is not between 0 and {limit:.6g}")
    return noise_multiplier * GRID


def add_noise(total: Tensor, noise_multiplier: float, key: bytes) -> Tensor:
    """Return `total` int64 [P] plus rint(N(0, σ²)·2³⁶) in each coordinate, as a new tensor. PUBLIC once charged.

    The noise is a pure function of `key`, drawn in float64 on the CPU, so that every rank adds the same noise.
    """
    if total.dtype != torch.int64 or total.dim() != 1:
        raise TypeError(f"expected one flat int64 sum, got {total.dtype} {tuple(total.shape)}")
    drawn = gaussian(key, total.numel())
    drawn *= _noise_scale(noise_multiplier)
    noise = torch.from_numpy(drawn).round_().to(torch.int64)
    return total + noise.to(total.device)


def from_grid(noisy: Tensor, clip_norm: float) -> Tensor:
    """Convert a grid's int64 [P] back to the vectors' own units, float64 [P]."""
    return noisy.to(torch.float64) * (clip_norm / GRID)
