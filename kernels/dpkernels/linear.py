"""Per-unit gradients of a linear layer y = x Wᵀ + b.

For the unit b that owns the rows R(b): ∂L/∂W = Σ_{r ∈ R(b)} g_r x_rᵀ, ∂L/∂b = Σ_{r ∈ R(b)} g_r
(Goodfellow 2015, arXiv 1510.01799), a batched matrix product over units.
"""

from torch import Tensor

from dpkernels.accumulate import store, widen


def linear_weight_grad(x: Tensor, grad_out: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Writes each unit's weight gradient into `out`. PRIVATE.

    x [N, ..., I] and grad_out [N, ..., O], any strides, N = B·K with a unit's K draws contiguous; out
    [B, O, I], any strides; `accumulate` adds to what `out` holds. bf16 and fp16 inputs are summed in fp32.
    """
    x_brI, grad_brO = _rows(widen(x), len(out)), _rows(widen(grad_out), len(out))
    if x_brI.shape[1] == 1:  # rank one: an outer product, which a GEMM library does with overhead
        store(out, grad_brO.transpose(1, 2) * x_brI, accumulate)
    else:
        store(out, grad_brO.transpose(1, 2).bmm(x_brI), accumulate)


def linear_bias_grad(grad_out: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Writes each unit's bias gradient into `out` [B, O]; arguments as in `linear_weight_grad`. PRIVATE."""
    store(out, _rows(widen(grad_out), len(out)).sum(1), accumulate)


def _rows(tensor: Tensor, units: int) -> Tensor:
    """[N, ..., F] as [B, rows of a unit, F]."""
    return tensor.reshape(units, -1, tensor.shape[-1])
