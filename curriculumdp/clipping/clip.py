"""Clipping: one L2 norm per unit over all parameters, then an exact sum on the grid (design D3, steps 1 to 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpkernels.clip_sum import add_rounded_rows, squared_norms
from dpkernels.grid import AIM, GRID
from dpkernels.limits import MAX_CLIP_NORM, MIN_CLIP_NORM


@dataclass(frozen=True)
class ClipResult:
    """PRIVATE. norms: before clipping, float64 [B]; excluded: how many present units were not finite, int64 []."""

    norms: Tensor
    excluded: Tensor


def add_clipped_rows(grads: Tensor, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
    """Adds the clipped, rounded gradient of every present unit to `total`, and returns the norms. PRIVATE.

    grads fp32 or fp64 [B, P], whose left-out rows are zeroed; total int64 [P] in steps of C/2³⁶, C = `clip_norm`;
    present bool [B]. Raises ValueError for a `clip_norm` out of range or too many units.

    Formal guarantee: a unit adds one integer vector n to `total` with Σ n² ≤ 2⁷², that is an L2 norm of at most
    C, whatever its gradient holds, and n depends on that gradient alone. For P < 2⁴⁰:

    | the unit's gradient           | what it adds                                                        |
    |-------------------------------|---------------------------------------------------------------------|
    | norm v ≤ C(1 − 2⁻¹²)          | rint(g · 2³⁶/C)                                                     |
    | norm above                    | rint(g · 2³⁶(1 − 2⁻¹²)/v)                                           |
    | norm 0                        | 0                                                                   |
    | NaN or ∞ in any place         | 0, whatever the other places hold; it is counted in `excluded`      |
    | finite, squares overflow fp32 | as above: its norm is taken again in float64                        |
    | finite, squares overflow fp64 | 0, counted in `excluded` (fp64 gradients only)                      |
    | denormal                      | its norm reads as less, by at most 2⁻⁴³; entries round to 0         |
    | not present                   | 0, whatever its row holds                                           |

    Why: the norm is short by less than 2⁻¹⁴ relative (`squared_norms`), two fp32 roundings add at most 2⁻²²,
    and rounding to integers √P/2; the margin is 2⁻¹², or 2²⁴ steps of the grid.

    The margin bounds one unit's vector. That the sums of two neighbours differ by that vector alone is the packing's
    doing: a removed unit's slot is still sampled and packed (`PrivatePhase.clipped_sum`), so that no other unit's
    position, microbatch or arithmetic changes. Under bf16 a shift could move every other unit by more than the margin.
    """
    if not MIN_CLIP_NORM <= clip_norm <= MAX_CLIP_NORM:
        raise ValueError(f"clip_norm is {clip_norm}; it must lie between {MIN_CLIP_NORM} and {MAX_CLIP_NORM}")
    norms = squared_norms(grads).sqrt()
    finite = norms.isfinite()
    kept = finite & present
    for row in (~kept).nonzero().flatten().tolist():
        grads[row].zero_()  # selected out, never multiplied by 0: 0·∞ is NaN
    factors = torch.where(norms > clip_norm * AIM, clip_norm * AIM / norms, 1.0)
    scale = torch.where(kept, factors * (GRID / clip_norm), 0.0)
    add_rounded_rows(grads, scale, total)
    return ClipResult(norms, (present & ~finite).sum())
