"""The integer grid of clipped sums (design D3), as kernels need it: steps of C/2³⁶."""

import triton
import triton.language as tl

GRID_BITS = 36
GRID = 2.0**GRID_BITS
# Clipping aims below C by more than rounding to the grid can ever add, so that the sensitivity is C.
AIM = 1.0 - 2.0**-12


@triton.jit
def rint(x: tl.tensor) -> tl.tensor:
    """float64 rounded to the nearest integer, ties to even, as torch.round: exact for every |x|.

    Adding and taking off 2⁵² leaves no room for a fraction. Compile its callers with enable_fp_fusion=False,
    or the product before it is fused into the addition and rounds differently from torch.
    """
    size = tl.abs(x)
    rounded = (size + 4503599627370496.0) - 4503599627370496.0
    rounded = tl.where(size < 4503599627370496.0, rounded, size)
    return tl.where(x < 0, -rounded, rounded)
