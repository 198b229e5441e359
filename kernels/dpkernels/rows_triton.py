"""Triton kernels of `rows`: one pass over memory each, in runs of channels."""

from collections.abc import Sequence

import torch
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
    first, second, third, fourth = (*terms, *(terms[0],) * 3)[:4]
    _add_kernel[(triton.cdiv(out.numel(), BLOCK),)](
        *(first, second, third, fourth, first if bias is None else bias, out, out.numel()),
        *(out.shape[3], len(terms), bias is not None, BLOCK),
        num_warps=8,
    )
    return out


def upsample(x: Tensor) -> Tensor:
    """Return what `rows.upsample` does."""
    require_rows(x)
    samples, height, width, channels = x.shape
    out = torch.empty(samples, 2 * height, 2 * width, channels, dtype=x.dtype, device=x.device)
    _upsample_kernel[(triton.cdiv(x.numel(), BLOCK),)](
        *(x, out, x.numel(), width, channels, BLOCK), num_warps=8
    )
    return out


def upsample_backward(grad_out: Tensor) -> Tensor:
    """Return what `rows.upsample_backward` does."""
    samples, height, width, channels = grad_out.shape
    grad = torch.empty(
        samples, height // 2, width // 2, channels, dtype=grad_out.dtype, device=grad_out.device
    )
    _gather_kernel[(triton.cdiv(grad.numel(), BLOCK),)](
        *(grad_out.contiguous(), grad, grad.numel(), width // 2, channels, BLOCK), num_warps=8
    )
    return grad


@triton.jit
def _add_kernel(
    first: tl.tensor,
    second: tl.tensor,
    third: tl.tensor,
    fourth: tl.tensor,
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
    if TERMS > 2:
        total += tl.load(third + place, mask=inside, other=0.0).to(tl.float32)
    if TERMS > 3:
        total += tl.load(fourth + place, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + place % CHANNELS, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _upsample_kernel(
    x: tl.tensor,  # [N, H, W, C]
    out: tl.tensor,  # [N, 2H, 2W, C]
    count: tl.tensor,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (block of elements of x)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(x + place, mask=inside, other=0.0)
    corner = out + _corner(place, WIDTH, CHANNELS)
    tl.store(corner, value, mask=inside)
    tl.store(corner + CHANNELS, value, mask=inside)
    tl.store(corner + 2 * WIDTH * CHANNELS, value, mask=inside)
    tl.store(corner + (2 * WIDTH + 1) * CHANNELS, value, mask=inside)


@triton.jit
def _gather_kernel(
    g: tl.tensor,  # [N, 2H, 2W, C]
    grad: tl.tensor,  # [N, H, W, C]
    count: tl.tensor,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (block of elements of grad)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    corner = g + _corner(place, WIDTH, CHANNELS)
    total = tl.load(corner, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(corner + CHANNELS, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(corner + 2 * WIDTH * CHANNELS, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(corner + (2 * WIDTH + 1) * CHANNELS, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad + place, total.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _corner(place: tl.tensor, WIDTH: tl.constexpr, CHANNELS: tl.constexpr) -> tl.tensor:
    """Return the offset of the first of an element's four pixels in the up-sampled image."""
    row, column, channel = place // (WIDTH * CHANNELS), place // CHANNELS % WIDTH, place % CHANNELS
    return (row * (4 * WIDTH) + 2 * column) * CHANNELS + channel
