"""Norms of per-unit gradients and the exact sum of their scaled, rounded values (design D3, steps 1 to 3)."""

import torch
from torch import Tensor

from dpkernels.limits import MAX_UNITS

# Number of squares summed in the gradients' own precision before float64 takes over: in any order, 1024 fp32 terms
# err by less than 2^-14 relative, a quarter of the margin of `AIM`.
NORM_CHUNK = 1 << 10
# Elements scaled, rounded and summed per pass, so that its copies stay in cache. Measured at 64 and 16 rows, 2^20 takes
# a quarter longer and 2^16 a tenth longer (call overhead).
SUM_ELEMENTS = 1 << 18


def squared_norms(grads: Tensor) -> Tensor:
    """Return each row's squared L2 norm, float64 [B], of fp32 or fp64 grads [B, P]. PRIVATE.

    Relative error below 2^-13; squares below 2^-149 count as zero. A finite fp32 row gives a finite result even if
    its squares overflow fp32; a row that holds NaN or infinity gives NaN or infinity.
    """
    size = grads.shape[1]
    chunked = size - size % NORM_CHUNK
    chunks = torch.linalg.vector_norm(grads[:, :chunked].unflatten(1, (-1, NORM_CHUNK)), dim=2)
    rest = torch.linalg.vector_norm(grads[:, chunked:], dim=1, keepdim=True)
    squares = torch.cat((chunks, rest), 1).double().square().sum(1)
    for row in squares.isinf().nonzero().flatten().tolist():
        squares[row] = sum(part.double().square().sum() for part in grads[row].split(SUM_ELEMENTS))
    return squares


def add_rounded_rows(grads: Tensor, scale: Tensor, total: Tensor) -> None:
    """Add Σ_b rint(grads[b] · scale[b]) to `total`, exactly. PRIVATE.

    grads fp32 or fp64 [B, P]; scale float64 [B]; total int64 [P], changed in place. The caller guarantees that every
    |grads · scale| is at most 2^36; a row that must not count has to be zero, since 0·∞ is NaN. Makes no second copy
    of `grads`. Raises ValueError for more than `MAX_UNITS` units.
    """
    if len(grads) > MAX_UNITS:
        raise ValueError(
            f"the microbatch has {len(grads)} units, but at most {MAX_UNITS} can be summed exactly"
        )
    factor = scale.to(grads.dtype)[:, None]
    width = max(1, SUM_ELEMENTS // max(1, len(grads)))
    for part, sums in zip(grads.split(width, 1), total.split(width), strict=True):
        # Float64 sums of integers below 2^53 are exact, at a quarter of the cost of int64 sums (measured).
        sums.add_(part.mul(factor).round_().sum(0, dtype=torch.float64).long())
