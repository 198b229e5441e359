"""The integer grid and its noise: clipped vectors become integers, their sum is exact, Gaussian noise is added once.

A unit's vector g with ‖g‖ ≤ C(1 − 2⁻¹²) is rounded to n = rint(g·2³⁶/C). Rounding moves each of P coordinates
by at most ½, hence ‖n‖ ≤ 2³⁶ − 2²⁴ + √P/2 < 2³⁶ for any P < 2⁵⁰: the sensitivity of the integer sum is exactly
2³⁶, that is C, in any order. Noise is rounded to the same grid: what is released is a rounding of the exact
mechanism's output, so the low bits of floating point reveal nothing (Mironov, CCS 2012).
"""

import math

import torch
from torch import Tensor

from curriculumdp.errors import UserError
from curriculumdp.privacy.event import CLIP_NORMS
from curriculumdp.privacy.streams import gaussian

GRID_BITS = 36
GRID = 2.0**GRID_BITS
AIM = 1 - 2.0**-12
# √(2 ln 2⁶⁵) = 9.493 is the largest magnitude that `gaussian` returns.
MAX_NORMAL = 9.5


class NoiseError(UserError):
    """A noise multiplier, clip norm or number of units that the grid cannot represent."""


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


def _require_clip_norm(clip_norm: float) -> float:
    if not CLIP_NORMS[0] <= clip_norm <= CLIP_NORMS[1]:
        raise NoiseError(f"clip norm {clip_norm} is not between {CLIP_NORMS[0]} and {CLIP_NORMS[1]}")
    return clip_norm


def round_to_grid(vectors: Tensor, clip_norm: float) -> Tensor:
    """Return rint(g·2³⁶/C) of each unit's vector, int64 [B, P], from clipped float64 [B, P]. PRIVATE.

    One row is ONE unit: rounding a sum of units would break the bound.
    """
    return (vectors * (GRID / _require_clip_norm(clip_norm))).round_().to(torch.int64)


def clip_and_sum(vectors: Tensor, clip_norm: float, present: Tensor) -> Tensor:
    """Return the exact sum of the units' clipped vectors on the grid, int64 [P]. PRIVATE.

    `vectors` float64 [B, P], one unit per row; `present` bool [B]. A unit that is absent or whose norm is not
    finite is masked out with `where` (0·∞ is NaN). Adding or removing any unit, whatever its values, moves the
    result by at most 2³⁶ in L2 norm. Raises TypeError for other dtypes.

    | a unit's norm     | its contribution                   |
    |-------------------|------------------------------------|
    | 0                 | 0                                  |
    | up to C(1 − 2⁻¹²) | itself                             |
    | above             | itself, scaled to norm C(1 − 2⁻¹²) |
    | ∞ or NaN          | 0                                  |
    """
    if vectors.dtype != torch.float64:
        raise TypeError(f"expected float64 vectors, got {vectors.dtype}")
    aim = _require_clip_norm(clip_norm) * AIM
    norms = torch.linalg.vector_norm(vectors, dim=1)
    kept = present & norms.isfinite()
    factors = torch.where(kept & (norms > aim), aim / norms, 1.0)
    clipped = torch.where(kept[:, None], vectors * factors[:, None], 0.0)
    return round_to_grid(clipped, clip_norm).sum(0)


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
    return noisy.to(torch.float64) * (_require_clip_norm(clip_norm) / GRID)
