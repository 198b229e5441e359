"""The integer grid of clipped sums, steps of C/2³⁶, for kernels (design D3)."""

import triton
import triton.language as tl

GRID_BITS = 36
GRID = 2.0**GRID_BITS
# Clipping aims below C by more than rounding to the grid can add, so that the sensitivity is C.
AIM = 1.0 - 2.0**-12


@triton.jit
def rint(x: tl.tensor) -> tl.tensor:
    """Return fp32 or fp64 `x` rounded to the nearest integer, ties to even, like torch.round; exact for every x.

    A number of LIMIT or more has no fraction; below it, adding and subtracting LIMIT rounds the fraction away. Compile
    callers with enable_fp_fusion=False, or the product before the addition is fused into it and rounds differently
    from torch.
    """
    LIMIT: tl.constexpr = 4503599627370496.0 if x.dtype == tl.float64 else 8388608.0
    size = tl.abs(x)
    rounded = tl.where(size < LIMIT, (size + LIMIT) - LIMIT, size)
    return tl.where(x < 0, -rounded, rounded)


@triton.jit
def add_to(place: tl.tensor, value: tl.tensor, mask: tl.tensor) -> None:
    """Add int64 `value` to memory at `place`, which no other program writes: hence no atomics."""
    tl.store(place, tl.load(place, mask=mask, other=0) + value, mask=mask)


@triton.jit
def add_shared(place: tl.tensor, value: tl.tensor, mask: tl.tensor) -> None:
    """Add int64 `value` to memory at `place`, to which other programs add too, in any order.

    The only atomic of the package: integer sums are exact, so that no order can show.
    """
    tl.static_assert(place.dtype.element_ty == tl.int64, "sums of floating point would depend on the order")
    tl.atomic_add(place, value, mask=mask, sem="relaxed")


@triton.jit
def store_value(place: tl.tensor, value: tl.tensor, mask: tl.tensor, ACCUMULATE: tl.constexpr) -> tl.tensor:
    """Store fp32 `value`, or add it to what is there; return what memory then holds, as fp32.

    Nothing is stored where `mask` is False; there the result is 0 if `value` is 0.
    """
    if ACCUMULATE:
        value += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    stored = value.to(place.dtype.element_ty)
    tl.store(place, stored, mask=mask)
    return stored.to(tl.float32)
