"""Sums on rows of channels, [N, H, W, C]: one pass over memory."""

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

    terms: one or two contiguous [N, H, W, C]; bias [C]; out, if given, is what is written and returned.
    """
    out = torch.empty_like(terms[0]) if out is None else out
    if use_triton(terms[0]):
        return rows_triton.add_rows(terms, bias, out)
    total = sum((widen(term) for term in terms[1:]), widen(terms[0]))
    return out.copy_(total if bias is None else total + bias)
