"""Per-unit gradients of a 2-D convolution.

For the unit b that owns the samples N(b): ∂L/∂W[o,c,i,j] = Σ_{n ∈ N(b)} Σ_{h,w} g[n,o,h,w] ·
x[n,c,h·s+i·d−p, w·s+j·d−p]: the ordinary weight gradient, split by unit.
"""

import torch
from torch import Tensor

from dpkernels.accumulate import store, widen

Pair = tuple[int, int]


def conv2d_weight_grad(
    x: Tensor,
    grad_out: Tensor,
    out: Tensor,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    accumulate: bool = False,
) -> None:
    """Writes each unit's weight gradient into `out`. PRIVATE.

    x [N, Cin, H, W] and grad_out [N, Cout, H', W'], any strides, N = B·K with a unit's K draws contiguous; out
    [B, Cout, Cin/groups, kh, kw], any strides; `accumulate` adds to what `out` holds. bf16 and fp16 inputs are
    summed in fp32.
    """
    draws = len(x) // len(out)
    weight = out.new_empty(out.shape[1:])
    for unit, (x_unit, grad_unit) in enumerate(zip(widen(x).split(draws), widen(grad_out).split(draws), strict=True)):
        _, grad, _ = torch.ops.aten.convolution_backward(
            grad_unit, x_unit, weight, None, stride, padding, dilation, False, (0, 0), groups, (False, True, False)
        )
        store(out[unit], grad, accumulate)


def conv2d_bias_grad(grad_out: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Writes each unit's bias gradient into `out` [B, Cout]; arguments as in `conv2d_weight_grad`. PRIVATE."""
    sums = widen(grad_out).sum((2, 3))
    store(out, sums.view(len(out), -1, out.shape[1]).sum(1), accumulate)
