"""Norms of per-unit gradients, and their clipped, rounded, exact sum (design D3, steps 1 to 3)."""

import torch
from torch import Tensor

GRID_BITS = 36
# Factors aim below the clip norm, so that no rounding can carry a unit above it.
AIM = 1 - 2**-12
# A float64 holds every integer below 2^53: that many units can be summed exactly before the int64 addition.
MAX_UNITS = 2 ** (53 - GRID_BITS) - 1
NORM_CHUNK = 1 << 10
SUM_ELEMENTS = 1 << 18


def squared_norms(grads: Tensor) -> Tensor:
    """Each row's squared L2 norm, float64 [B], of grads [B, P]. PRIVATE."""
    return _chunk_norms(grads).double().square_().sum(1)


def _chunk_norms(grads: Tensor) -> Tensor:
    units, size = grads.shape
    whole = size - size % NORM_CHUNK
    chunks = grads[:, :whole].unflatten(1, (-1, NORM_CHUNK))
    norms = torch.linalg.vector_norm(chunks, dim=2)
    rest = torch.linalg.vector_norm(grads[:, whole:], dim=1, keepdim=True)
    return torch.cat((norms, rest), 1)


def add_rounded_rows(grads: Tensor, scale: Tensor, total: Tensor) -> None:
    if len(grads) > MAX_UNITS:
        raise ValueError(f"{len(grads)} units in a microbatch: at most {MAX_UNITS} can be summed exactly")
    factor = scale.to(grads.dtype)[:, None]
    width = max(1, SUM_ELEMENTS // len(grads))
    for chunk, part in zip(grads.split(width, 1), total.split(width), strict=True):
        part += chunk.mul(factor).round_().sum(0, dtype=torch.float64).long()
