"""Triton kernels of `clip_sum`: squared norms, and the clipped, rounded, exact sum (design D3, steps 1 to 3).

    norm_b   = √(Σ_p G[b,p]²)                        float64, over all parameters
    scale_b  = min(1, C·AIM/norm_b) · 2³⁶/C          0 for a unit that is padding or not finite
    total[p] += Σ_b rint(G[b,p] · scale_b)           each unit rounded separately, integers summed

A program owns a run of parameters and loops over the units, so that every sum stays in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.device import CLIP_SUM_BLOCK
from dpkernels.grid import AIM, GRID, add_to, rint


def squared_row_norms(grads: Tensor) -> Tensor:
    """Return each row's squared L2 norm, float64 [B], of grads fp32 or bf16 [B, P]. PRIVATE."""
    blocks = triton.cdiv(grads.shape[1], CLIP_SUM_BLOCK)
    parts = torch.empty(len(grads), blocks, dtype=torch.float64, device=grads.device)
    _squares_kernel[(blocks, len(grads))](
        *(grads, parts, grads.stride(0), parts.stride(0), grads.shape[1], CLIP_SUM_BLOCK), num_warps=4
    )
    return parts.sum(1)


def clip_scale(norms: Tensor, clip_norm: float, present: Tensor) -> Tensor:
    """Return each unit's factor to the grid, fp32 [B]; 0 if the unit is absent or its norm not finite. PRIVATE.

    norms float64 [B], present bool [B]. In torch, reading no value on the host, so a CUDA graph can capture it.
    """
    # Norms below the clip norm, 0 included, scale nothing up.
    factor = clip_norm * AIM / norms.clamp(min=clip_norm * AIM)
    return torch.where(present & norms.isfinite(), factor * (GRID / clip_norm), 0.0).float()


def add_scaled_rows(grads: Tensor, scale: Tensor, total: Tensor) -> None:
    """Add Σ_b rint(grads[b]·scale[b]) to `total`, exactly. PRIVATE.

    grads fp32 or bf16 [B, P]; scale fp32 [B]; total int64 [P]. A unit whose scale is 0 adds nothing,
    whatever it holds.
    """
    _sum_kernel[(triton.cdiv(grads.shape[1], CLIP_SUM_BLOCK),)](
        *(grads, scale, total, grads.stride(0), len(grads), grads.shape[1], CLIP_SUM_BLOCK),
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit
def _squares_kernel(
    grads: tl.tensor,  # fp32 or bf16 [B, P]
    parts: tl.tensor,  # float64 [B, blocks]
    grads_stride: tl.tensor,
    parts_stride: tl.tensor,
    count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Program (block, unit)."""
    unit = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(grads + unit * grads_stride + place, mask=place < count, other=0.0).to(tl.float64)
    tl.store(parts + unit * parts_stride + tl.program_id(0), tl.sum(value * value, 0))


@triton.jit
def _sum_kernel(
    grads: tl.tensor,  # fp32 or bf16 [B, P]
    scale: tl.tensor,  # fp32 [B]
    total: tl.tensor,  # int64 [P]
    stride: tl.tensor,
    units: tl.tensor,
    count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Program (block)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    sum_ = tl.zeros((BLOCK,), dtype=tl.int64)
    for unit in range(units):
        factor = tl.load(scale + unit)
        value = tl.load(grads + tl.cast(unit, tl.int64) * stride + place, mask=inside, other=0.0).to(
            tl.float32
        )
        # where, not a product: 0·∞ is NaN.
        sum_ += tl.where(factor != 0.0, rint(value * factor), 0.0).to(tl.int64)
    add_to(total + place, sum_, inside)
