"""Per-unit gradients of a linear layer y = x Wᵀ + b.

For the unit b that owns the rows R(b): ∂L/∂W = Σ_{r ∈ R(b)} g_r x_rᵀ, ∂L/∂b = Σ_{r ∈ R(b)} g_r
(Goodfellow 2015, arXiv 1510.01799): a batched matrix product over units.
"""

import torch
from torch import Tensor

from dpkernels.accumulate import store, widen


def linear_weight_grad(x: Tensor, grad_out: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Write each unit's weight gradient into `out`. PRIVATE.

    x [N, ..., I] and grad_out [N, ..., O], any strides, N = B·K with a unit's K draws contiguous; out
    [B, O, I], any strides; `accumulate` adds to what `out` holds. bf16 and fp16 inputs are summed in fp32.
    """
    x_bRI, grad_bRO = _rows(widen(x), len(out)), _rows(widen(grad_out), len(out))
    if x_bRI.shape[1] == 1 and not accumulate and out.dtype == x_bRI.dtype:
        torch.mul(grad_bRO.transpose(1, 2), x_bRI, out=out)  # rank one: written straight into `out`
    else:
        # Into its own block first: MKL takes twice as long to write a strided batch (measured).
        store(out, grad_bRO.transpose(1, 2).bmm(x_bRI), accumulate)


def linear_bias_grad(grad_out: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Write each unit's bias gradient into `out` [B, O]; arguments as in `linear_weight_grad`. PRIVATE."""
    store(out, _rows(widen(grad_out), len(out)).sum(1), accumulate)


def _rows(tensor: Tensor, units: int) -> Tensor:
    """Return [N, ..., F] as [B, rows per unit, F]."""
    return tensor.reshape(units, -1, tensor.shape[-1])
