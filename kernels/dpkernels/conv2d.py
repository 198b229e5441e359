"""Per-unit gradients of a 2-D convolution.

For the unit b that owns the samples N(b): ∂L/∂W[o,c,i,j] = Σ_{n ∈ N(b)} Σ_{h,w} g[n,o,h,w] ·
x[n,c,h·s+i·d−p, w·s+j·d−p]: the ordinary weight gradient, split by unit.
"""

import torch
from torch import Tensor

from dpkernels.accumulate import store, widen

Pair = tuple[int, int]

# Elements of one library call's inputs and of its result: both stay in a core's cache, which costs 10 to 30 % of
# the call where they do not (measured, 4 MB of fp32).
CALL_ELEMENTS = 1 << 20
MAX_CALL_UNITS = 16


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
    if _is_product(out, stride, padding, groups):
        _pointwise_weight_grad(widen(x), widen(grad_out), out, accumulate)
        return
    draws = len(x) // len(out)
    step = _call_units(x, grad_out, out)
    parts = (x.split(step * draws), grad_out.split(step * draws), out.split(step))
    for x_part, grad_part, out_part in zip(*parts, strict=True):
        units = len(out_part)
        weight = x.new_empty(units * out.shape[1], *out.shape[2:], dtype=widen(x[:0]).dtype)
        _, grad, _ = torch.ops.aten.convolution_backward(
            _units_as_channels(grad_part, units),
            _units_as_channels(x_part, units),
            weight,
            None,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups * units,
            (False, True, False),
        )
        store(out_part, grad.view(out_part.shape), accumulate)


def conv2d_bias_grad(grad_out: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Writes each unit's bias gradient into `out` [B, Cout]; arguments as in `conv2d_weight_grad`. PRIVATE."""
    sums = widen(grad_out).sum((2, 3))
    store(out, sums.view(len(out), -1, out.shape[1]).sum(1), accumulate)


def _call_units(x: Tensor, grad_out: Tensor, out: Tensor) -> int:
    """How many units one library call takes."""
    read = (x.numel() + grad_out.numel()) // len(out)
    return max(1, min(MAX_CALL_UNITS, CALL_ELEMENTS // max(read, out[0].numel())))


def _units_as_channels(samples: Tensor, units: int) -> Tensor:
    """[U·K, C, H, W] as [K, U·C, H, W]: a unit becomes a channel group, whose weight gradient is its own."""
    draws = len(samples) // units
    folded = widen(samples).unflatten(0, (units, draws)).transpose(0, 1)
    return folded.reshape(draws, -1, *samples.shape[2:])


def _is_product(out: Tensor, stride: Pair, padding: Pair, groups: int) -> bool:
    return out.shape[3:] == (1, 1) and tuple(stride) == (1, 1) and tuple(padding) == (0, 0) and groups == 1


def _pointwise_weight_grad(x: Tensor, grad_out: Tensor, out: Tensor, accumulate: bool) -> None:
    """A 1x1 convolution is a linear layer over positions."""
    units = len(out)
    x_bCr, grad_bOr = (_units_as_channels(t, units).flatten(2) for t in (x, grad_out))
    draws = len(x_bCr)
    x_bCr = x_bCr.view(draws, units, -1, x_bCr.shape[-1])
    grad_bOr = grad_bOr.view(draws, units, -1, grad_bOr.shape[-1])
    grad = grad_bOr[0].bmm(x_bCr[0].transpose(1, 2))
    for draw in range(1, draws):
        grad.baddbmm_(grad_bOr[draw], x_bCr[draw].transpose(1, 2))
    store(out, grad.view(out.shape), accumulate)
