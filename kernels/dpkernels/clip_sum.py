"""Norms of per-unit gradients, and their clipped, rounded, exact sum (design D3, steps 1 to 3)."""

import torch
from torch import Tensor

GRID_BITS = 36
# Factors aim below the clip norm, so that no rounding can carry a unit above it.
AIM = 1 - 2**-12
# A float64 holds every integer below 2^53: that many units can be summed exactly before the int64 addition.
MAX_UNITS = 2 ** (53 - GRID_BITS) - 1
NORM_CHUNK = 1 << 18


def squared_norms(grads: Tensor) -> Tensor:
    """Each row's squared L2 norm, float64 [B], of grads [B, P]. PRIVATE."""
    total = torch.zeros(len(grads), dtype=torch.float64, device=grads.device)
    for chunk in grads.split(NORM_CHUNK, 1):
        total += chunk.double().square_().sum(1)
    return total


def add_rounded_rows(grads: Tensor, scale: Tensor, total: Tensor) -> None:
    """Adds Σ_b rint(grads[b]·scale[b]) to `total`, exactly. PRIVATE. Overwrites `grads`.

    grads fp32 or fp64 [B, P]; scale float64 [B]; total int64 [P]. A row that is to count for nothing must be
    finite already.
    """
    if len(grads) > MAX_UNITS:
        raise ValueError(f"{len(grads)} units in a microbatch: at most {MAX_UNITS} can be summed exactly")
    factor = scale.to(grads.dtype)[:, None]
    for chunk, part in zip(grads.split(NORM_CHUNK, 1), total.split(NORM_CHUNK), strict=True):
        chunk.mul_(factor).round_()
        part += chunk.sum(0, dtype=torch.float64).long()
