"""How a per-unit gradient is stored: written at a weight's first use in a backward, added at later ones."""

import torch
from torch import Tensor


def store(out: Tensor, value: Tensor, accumulate: bool) -> None:
    """Writes `value` into `out` (same shape, any strides), or adds it to what is there."""
    if accumulate:
        out.add_(value)
    else:
        out.copy_(value)


def widen(tensor: Tensor) -> Tensor:
    """`tensor` in fp32 where it is narrower, so that sums over draws and positions are taken in fp32."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
