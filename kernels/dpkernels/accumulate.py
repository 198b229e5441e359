"""Storing per-unit gradients: written at a weight's first use in a backward, added at later ones."""

import torch
from torch import Tensor


def store(out: Tensor, value: Tensor, accumulate: bool) -> None:
    """Write `value` into `out` (same shape, any strides), or add it if `accumulate`."""
    if accumulate:
        out.add_(value)
    else:
        out.copy_(value)


def widen(tensor: Tensor) -> Tensor:
    """Return `tensor` in fp32 if it is bf16 or fp16, so that sums over draws and positions are in fp32."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
