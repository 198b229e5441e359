"""Sums and nearest up-sampling on rows of channels, [N, H, W, C]: each one pass over memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpkernels import rows_triton
from dpkernels.accumulate import widen
from dpkernels.device import use_triton


class Terms(NamedTuple):
    """A sum that is still to be computed: one or two contiguous [N, H, W, C], and what is added, [C]."""

    terms: tuple[Tensor, ...]
    bias: Tensor | None = None


def add_rows(terms: Sequence[Tensor], bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return Σ terms + bias, added in fp32 (fp64 for fp64) and rounded once to the terms' dtype. PRIVATE.

    terms: one to four contiguous [N, H, W, C]; bias [C]; out, if given, is what is written and returned.
    """
    out = torch.empty_like(terms[0]) if out is None else out
    if use_triton(terms[0]):
        return rows_triton.add_rows(terms, bias, out)
    total = sum((widen(term) for term in terms[1:]), widen(terms[0]))
    return out.copy_(total if bias is None else total + bias)


def upsample(x: Tensor) -> Tensor:
    """Return x [N, H, W, C] with every pixel as a square of four, [N, 2H, 2W, C]."""
    if use_triton(x):
        return rows_triton.upsample(x)
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


def upsample_backward(grad_out: Tensor) -> Tensor:
    """Return the sum of every square of four, [N, H, W, C], of grad_out [N, 2H, 2W, C]; added in fp32."""
    if use_triton(grad_out):
        return rows_triton.upsample_backward(grad_out)
    return widen(grad_out).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).sum((2, 4)).to(grad_out.dtype)
