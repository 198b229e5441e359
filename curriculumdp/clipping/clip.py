"""Clipping: one L2 norm per unit over all parameters, then an exact integer sum (design D3, steps 1 to 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpkernels.clip_sum import AIM, GRID_BITS, add_rounded_rows, squared_norms


@dataclass(frozen=True)
class ClipResult:
    """PRIVATE. norms float64 [B], before clipping; excluded: units left out because they were not finite."""

    norms: Tensor
    excluded: int


def add_clipped_rows(grads: Tensor, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
    norms = squared_norms(grads).sqrt()
    finite = norms.isfinite()
    kept = finite & present
    grads[~kept] = 0
    factor = (clip_norm * AIM / norms.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
    scale = torch.where(kept, factor * (2**GRID_BITS / clip_norm), 0.0)
    add_rounded_rows(grads, scale, total)
    return ClipResult(norms, int((present & ~finite).sum()))
