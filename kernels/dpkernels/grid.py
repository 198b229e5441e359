"""The integer grid of clipped sums (design D3), as kernels need it: steps of C/2³⁶."""

import triton
import triton.language as tl

GRID_BITS = 36
GRID = 2.0**GRID_BITS
# Clipping aims below C by more than rounding to the grid can ever add, so that the sensitivity is C.
AIM = 1.0 - 2.0**-12


@triton.jit
def rint(x: tl.tensor) -> tl.tensor:
    """fp32 or fp64 rounded to the nearest integer, ties to even, as torch.round: exact for every x.

    From LIMIT on a number of its type has no fraction; below, adding and taking off LIMIT leaves no room for
    one. Compile its callers with enable_fp_fusion=False, or the product before it is fused into the addition
    and rounds differently from torch.
    """
    LIMIT: tl.constexpr = 4503599627370496.0 if x.dtype == tl.float64 else 8388608.0
    size = tl.abs(x)
    rounded = tl.where(size < LIMIT, (size + LIMIT) - LIMIT, size)
    return tl.where(x < 0, -rounded, rounded)


@triton.jit
def add_to(place: tl.tensor, value: tl.tensor, mask: tl.tensor) -> None:
    """Adds int64 `value` to memory at `place`, which no other program writes: hence no atomics."""
    tl.store(place, tl.load(place, mask=mask, other=0) + value, mask=mask)


@triton.jit
def store_value(place: tl.tensor, value: tl.tensor, mask: tl.tensor, ACCUMULATE: tl.constexpr) -> tl.tensor:
    """Stores fp32 `value`, or adds it to what is there; returns in fp32 what memory then holds.

    Where masked, nothing is stored and 0 returned if `value` is 0 there.
    """
    if ACCUMULATE:
        value += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    stored = value.to(place.dtype.element_ty)
    tl.store(place, stored, mask=mask)
    return stored.to(tl.float32)
