"""Per-unit gradients of a 2-D convolution.

For the unit b that owns the samples N(b): ∂L/∂W[o,c,i,j] = Σ_{n ∈ N(b)} Σ_{h,w} g[n,o,h,w] ·
x[n,c,h·s+i·d−p,w·s+j·d−p]: the ordinary weight gradient, split by unit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpkernels.accumulate import store, widen

Pair = tuple[int, int]

# Measured on one core, fp32, at 8 and 28 px, K = 1 to 4.
# Elements that one library call reads (or writes, if that is more): fits a core's cache, which is worth 5 to 20 %.
# Each call saved is worth 20 µs, up to about 32 units per call.
CALL_ELEMENTS = 1 << 18
MAX_CALL_UNITS = 32
# Units with several draws that read at least this many elements each go one per call: sharing a call copies them, 6 %
# of a step at 28 px.
ALONE_ELEMENTS = 1 << 16
# im2col and one product per sample, instead of a convolution, where patches are small (one channel: 5 times as fast for
# the last layer of a U-Net) or few (4x4 positions: 3 times).
NARROW_PATCH = 16
FEW_POSITIONS = 16


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
    """Write each unit's weight gradient into `out`. PRIVATE.

    x [N, Cin, H, W] and grad_out [N, Cout, H', W'], any strides, N = B·K with a unit's K draws contiguous; out
    [B, Cout, Cin/groups, kh, kw], any strides; `accumulate` adds to what `out` holds. bf16 and fp16 inputs are
    summed in fp32.
    """
    units, shape = len(out), out.shape[1:]
    draws = len(x) // units
    step = _units_per_call(x, grad_out, out)
    by_columns = groups == 1 and _suits_columns(shape, draws * grad_out[0, 0].numel())
    one_row = _suits_rows(shape, stride, padding, dilation, groups)
    for first in range(0, units, step):
        count = min(step, units - first)
        part = slice(first * draws, (first + count) * draws)
        x_part, grad_part = widen(x[part]), widen(grad_out[part])
        if by_columns:
            grad = _columns_product(x_part, grad_part, count, shape, stride, padding, dilation)
        elif one_row:
            grad = _rows_product(x_part, grad_part, count, shape, padding)
        else:
            grad = _grouped(x_part, grad_part, count, shape, stride, padding, dilation, groups)
        store(out[first : first + count], grad, accumulate)


def conv2d_bias_grad(grad_out: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """Write each unit's bias gradient into `out` [B, Cout]; arguments as in `conv2d_weight_grad`. PRIVATE."""
    sums = widen(grad_out).sum((2, 3))
    store(out, sums.view(len(out), -1, out.shape[1]).sum(1), accumulate)


def _units_per_call(x: Tensor, grad_out: Tensor, out: Tensor) -> int:
    """Return how many units one library call takes."""
    reads = (x.numel() + grad_out.numel()) // len(out)
    if len(x) > len(out) and reads >= ALONE_ELEMENTS:
        return 1
    return max(1, min(MAX_CALL_UNITS, CALL_ELEMENTS // max(reads, out[0].numel())))


def _suits_columns(shape: torch.Size, positions: int) -> bool:
    """Return whether im2col and a product beat a convolution; positions: over all draws of a unit."""
    _, channels, *taps = shape
    return taps == [1, 1] or channels * taps[0] * taps[1] <= NARROW_PATCH or positions <= FEW_POSITIONS


def _suits_rows(shape: torch.Size, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> bool:
    """Return whether the output's patches are narrow and can replace the input's."""
    outs, _, *taps = shape
    plain = groups == 1 and stride == dilation == (1, 1)
    inside = all(p < size for p, size in zip(padding, taps, strict=True))
    return plain and inside and outs * taps[0] * taps[1] <= NARROW_PATCH


def _columns_product(
    x: Tensor, grad: Tensor, units: int, shape: torch.Size, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Return [units, *shape] as g · im2col(x)ᵀ per sample, summed over draws."""
    taps = (shape[2], shape[3])
    pointwise = taps == stride == (1, 1) and padding == (0, 0)
    columns = x.flatten(2) if pointwise else F.unfold(x, taps, dilation, padding, stride)
    products = grad.flatten(2).bmm(columns.transpose(1, 2))
    return _sum_draws(products, units).view(units, *shape)


def _rows_product(x: Tensor, grad: Tensor, units: int, shape: torch.Size, padding: Pair) -> Tensor:
    """Return [units, *shape] as im2col(g)·xᵀ for stride 1: Σ_{u,v} g[o, u−i+p, v−j+p] · x[c, u, v], taps reversed."""
    outs, channels, height, width = shape
    border = (height - 1 - padding[0], width - 1 - padding[1])
    rows = F.unfold(grad, (height, width), padding=border)
    products = _sum_draws(rows.bmm(x.flatten(2).transpose(1, 2)), units)
    return products.view(units, outs, height, width, channels).flip(2, 3).permute(0, 1, 4, 2, 3)


def _sum_draws(products: Tensor, units: int) -> Tensor:
    """Sum [N, ...] over each unit's draws, to [units, ...]."""
    return products if len(products) == units else products.unflatten(0, (units, -1)).sum(1)


def _grouped(
    x: Tensor,
    grad: Tensor,
    units: int,
    shape: torch.Size,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return [units, *shape] from one convolution in which each unit is a channel group.

    Measured at 1.05 to 1.3 times the cost of the whole batch's weight gradient at 28 px, 1.2 to 2.5 times at 8 px.
    """
    x_kC = _units_as_channels(x, units)
    _, grads, _ = torch.ops.aten.convolution_backward(
        _units_as_channels(grad, units),
        x_kC,
        x_kC.new_empty(units * shape[0], *shape[1:]),
        None,
        stride,
        padding,
        dilation,
        False,
        (0, 0),
        groups * units,
        (False, True, False),
    )
    weights: Tensor = grads.view(units, *shape)
    return weights


def _units_as_channels(samples: Tensor, units: int) -> Tensor:
    """Return [U·K, C, H, W] as [K, U·C, H, W]; a view if K = 1 or U = 1 and `samples` is contiguous."""
    draws = len(samples) // units
    return samples.unflatten(0, (units, draws)).transpose(0, 1).reshape(draws, -1, *samples.shape[2:])
