"""Clipping: one L2 norm per unit over all parameters, then an exact sum on the grid (design D3, steps 1 to 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpkernels.clip_sum import add_rounded_rows, squared_norms
from dpkernels.grid import AIM, GRID
from dpkernels.limits import MAX_CLIP_NORM, MIN_CLIP_NORM


@dataclass(frozen=True)
class ClipResult:
    """PRIVATE. norms: before clipping, float64 [B]; excluded: number of present, non-finite units, int64 []."""

    norms: Tensor
    excluded: Tensor


def add_clipped_rows(grads: Tensor, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
    """Add the clipped, rounded gradient of every present unit to `total` and return the norms. PRIVATE.

    grads fp32 or fp64 [B, P], its excluded rows zeroed in place; total int64 [P] in steps of C/2³⁶, C = `clip_norm`;
    present bool [B]. Raises ValueError if `clip_norm` is out of range or there are too many units.

    Formal guarantee: a unit adds one integer vector n to `total` with Σ n² ≤ 2⁷², i.e. an L2 norm of at most C,
    whatever its gradient holds, and n depends on that gradient alone. For P < 2⁴⁰:

    | the unit's gradient           | what it adds                                                        |
    |-------------------------------|---------------------------------------------------------------------|
    | norm v ≤ C(1 − 2⁻¹²)          | rint(g · 2³⁶/C)                                                     |
    | norm above                    | rint(g · 2³⁶(1 − 2⁻¹²)/v)                                           |
    | norm 0                        | 0                                                                   |
    | NaN or ∞ in any entry         | 0, whatever the other entries hold; counted in `excluded`           |
    | finite, squares overflow fp32 | as above: the norm is recomputed in float64                         |
    | finite, squares overflow fp64 | 0, counted in `excluded` (fp64 gradients only)                      |
    | denormal                      | norm underestimated by at most 2⁻⁴³; entries round to 0             |
    | not present                   | 0, whatever its row holds                                           |

    Why: the computed norm is low by less than 2⁻¹⁴ relative (`squared_norms`), two fp32 roundings add at most 2⁻²²
    and rounding to integers at most √P/2; the margin is 2⁻¹², or 2²⁴ steps of the grid.

    The margin bounds one unit's vector. It is the packing that makes two neighbours' sums differ by that vector
    alone: a removed unit's slot is still sampled and packed (`PrivatePhase.clipped_sum`), so no other unit's
    position, microbatch or arithmetic changes. Under bf16 a shift could move every other unit by more than the margin.
    """
    if not MIN_CLIP_NORM <= clip_norm <= MAX_CLIP_NORM:
        raise ValueError(f"clip_norm is {clip_norm}; it must be between {MIN_CLIP_NORM} and {MAX_CLIP_NORM}")
    norms = squared_norms(grads).sqrt()
    finite = norms.isfinite()
    kept = finite & present
    for row in (~kept).nonzero().flatten().tolist():
        grads[row].zero_()  # zeroed, never multiplied by 0: 0·∞ is NaN
    factors = torch.where(norms > clip_norm * AIM, clip_norm * AIM / norms, 1.0)
    scale = torch.where(kept, factors * (GRID / clip_norm), 0.0)
    add_rounded_rows(grads, scale, total)
    return ClipResult(norms, (present & ~finite).sum())
