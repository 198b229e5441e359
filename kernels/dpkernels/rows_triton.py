"""The Triton kernel of `rows`: one pass over memory, in runs of channels."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def require_rows(*tensors: Tensor) -> None:
    """Raise ValueError unless the tensors are contiguous, as the kernels on rows read them."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("the kernels on rows of channels read contiguous tensors alone")


def add_rows(terms: Sequence[Tensor], bias: Tensor | None, out: Tensor) -> Tensor:
    """Return what `rows.add_rows` does."""
    require_rows(*terms, out)
    # An unused pointer argument must still be a tensor: the first term stands in.
    first, second = (*terms, terms[0])[:2]
    _add_kernel[(triton.cdiv(out.numel(), BLOCK),)](
        *(first, second, first if bias is None else bias, out, out.numel()),
        *(out.shape[3], len(terms), bias is not None, BLOCK),
        num_warps=8,
    )
    return out


@triton.jit
def _add_kernel(
    first: tl.tensor,
    second: tl.tensor,
    bias: tl.tensor,  # [C]
    out: tl.tensor,
    count: tl.tensor,
    CHANNELS: tl.constexpr,
    TERMS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (block of elements)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    total = tl.load(first + place, mask=inside, other=0.0).to(tl.float32)
    if TERMS > 1:
        total += tl.load(second + place, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + place % CHANNELS, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
