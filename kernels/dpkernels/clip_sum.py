"""Norms of per-unit gradients, and the exact sum of their scaled and rounded values (design D3, steps 1 to 3)."""

import torch
from torch import Tensor

from dpkernels.limits import MAX_UNITS

# Elements whose squares are summed in the gradients' own precision before float64 takes over: in whatever order,
# 1024 fp32 terms err by less than 2^-14 relative, a quarter of the margin of `AIM`.
NORM_CHUNK = 1 << 10
# Elements that one pass scales, rounds and sums: its copies stay in cache. 2^20 takes a quarter longer, 2^16 a tenth
# (calls), measured at 64 and 16 rows.
SUM_ELEMENTS = 1 << 18


def squared_norms(grads: Tensor) -> Tensor:
    """Each row's squared L2 norm, float64 [B], of fp32 or fp64 grads [B, P]. PRIVATE.

    Relative error below 2^-13; squares below 2^-149 count as zero. A finite fp32 row has a finite result, even
    where its squares overflow fp32; a row that holds NaN or infinity has NaN or infinity.
    """
    size = grads.shape[1]
    whole = size - size % NORM_CHUNK
    chunks = torch.linalg.vector_norm(grads[:, :whole].unflatten(1, (-1, NORM_CHUNK)), dim=2)
    rest = torch.linalg.vector_norm(grads[:, whole:], dim=1, keepdim=True)
    squares = torch.cat((chunks, rest), 1).double().square().sum(1)
    for row in squares.isinf().nonzero().flatten().tolist():
        squares[row] = sum(part.double().square().sum() for part in grads[row].split(SUM_ELEMENTS))
    return squares


def add_rounded_rows(grads: Tensor, scale: Tensor, total: Tensor) -> None:
    """Adds Σ_b rint(grads[b] · scale[b]) to `total`, exactly. PRIVATE.

    grads fp32 or fp64 [B, P]; scale float64 [B]; total int64 [P], changed in place. The caller sees to it that
    every |grads · scale| is at most 2^36: a row that is to count for nothing must be zero, for 0·∞ is NaN. No
    second copy of `grads` is made.
    """
    if len(grads) > MAX_UNITS:
        raise ValueError(f"{len(grads)} units in a microbatch; at most {MAX_UNITS} can be summed exactly")
    factor = scale.to(grads.dtype)[:, None]
    width = max(1, SUM_ELEMENTS // len(grads))
    for part, sums in zip(grads.split(width, 1), total.split(width), strict=True):
        # Float64 sums of integers below 2^53 are exact, at a quarter of the price of int64 ones (measured).
        sums.add_(part.mul(factor).round_().sum(0, dtype=torch.float64).long())
