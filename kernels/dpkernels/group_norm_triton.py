"""Triton kernels of `group_norm`: the forward, and the whole backward, per-unit gradients included, in one launch.

With x̂ = (x−μ)·r, M the elements of a group, and means over the group:
    ∂L/∂w_c = Σ g·x̂,  ∂L/∂b_c = Σ g                   over the unit's draws and positions
    ∂L/∂x   = r·(g·w − mean(g·w) − x̂·mean(g·w·x̂))      (Wu and He 2018)

A program of the backward owns one group of one unit and loops over its draws, twice over the positions: for the sums,
which the ordinary backward takes too, and again, from cache, for the input's gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.device import GROUP_NORM_ELEMENTS
from dpkernels.grid import store_value


def group_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y like x but of `dtype`, mean fp32 [N, groups], rstd fp32 [N, groups]); y = (x−μ)·r·w + b.

    x [N, C, ...] (2 to 4 dimensions, any strides); weight and bias [C]. Keeps the memory format: the library's own
    forward returns NCHW for channels_last, and every convolution after it copies.
    """
    y = torch.empty_like(x, dtype=dtype)
    x_NCHW, y_NCHW = (_as_image(tensor) for tensor in (x, y))
    mean = torch.empty(len(x), groups, device=x.device)
    rstd = torch.empty_like(mean)
    wide = x.shape[1] // groups
    rows = triton.next_power_of_2(wide)
    _forward_kernel[(groups, len(x))](
        *(x_NCHW, y_NCHW, weight, bias, mean, rstd, x_NCHW.stride(), y_NCHW.stride(), eps),
        *(groups, wide, x_NCHW.shape[2] * x_NCHW.shape[3], x_NCHW.shape[3]),
        *(rows, max(1, GROUP_NORM_ELEMENTS // rows)),
        num_warps=4,
    )
    return y, mean, rstd


def _as_image(tensor: Tensor) -> Tensor:
    """View [N, C, ...] with two axes of positions."""
    return tensor.view(*tensor.shape, *(1,) * (4 - tensor.dim()))


def group_norm_input_and_unit_grads(
    x: Tensor,
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    accumulate: bool = False,
    squares: Tensor | None = None,
) -> Tensor:
    """Return the input's gradient, shaped as x, and write each unit's gradients of scale and shift. PRIVATE.

    x and grad_out [N, C, ...] (2 to 4 dimensions, any strides), N = B·K with a unit's K draws contiguous;
    mean and rstd [N, groups], as the forward returned them; weight [C]; weight_out and bias_out [B, C], any
    strides; `accumulate` adds to what they hold. squares, if given, is float64 [B, groups] and receives the
    parts of each unit's squared norm, of the values as stored.
    """
    grad_x = torch.empty_like(x)
    units, channels = weight_out.shape
    groups = mean.shape[1]
    images = [_as_image(tensor) for tensor in (x, grad_out, grad_x)]
    wide = channels // groups
    rows = triton.next_power_of_2(wide)
    parts = weight_out if squares is None else squares
    _group_norm_kernel[(groups, units)](
        *(*images, mean.contiguous(), rstd.contiguous(), weight, weight_out, bias_out, parts),
        *(image.stride() for image in images),
        *(weight_out.stride(), bias_out.stride(), parts.stride(0), len(x) // units),
        *(channels, wide, images[0].shape[2] * images[0].shape[3], images[0].shape[3]),
        *(accumulate, squares is not None, rows, max(1, GROUP_NORM_ELEMENTS // rows)),
        num_warps=4,
    )
    return grad_x


@triton.jit
def _forward_kernel(
    x: tl.tensor,  # [N, C, H, W]
    y: tl.tensor,  # [N, C, H, W]
    weight: tl.tensor,  # [C]
    bias: tl.tensor,  # [C]
    mean: tl.tensor,  # fp32 [N, groups]
    rstd: tl.tensor,  # fp32 [N, groups]
    x_stride: tl.tuple,
    y_stride: tl.tuple,
    eps: tl.tensor,
    GROUPS: tl.constexpr,
    WIDE: tl.constexpr,
    POSITIONS: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Program (group, sample). Two passes for the statistics: one pass would cancel if the mean is far from 0."""
    sample = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    channel = tl.program_id(0) * WIDE + row
    live = row < WIDE
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, POSITIONS, COLUMNS):
        place = start + tl.arange(0, COLUMNS)
        mask = live[:, None] & (place < POSITIONS)[None, :]
        sums += tl.load(x + _places(sample, channel, place, x_stride, W), mask=mask, other=0.0).to(tl.float32)
    centre = tl.sum(tl.sum(sums, 1), 0) / (WIDE * POSITIONS)
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, POSITIONS, COLUMNS):
        place = start + tl.arange(0, COLUMNS)
        mask = live[:, None] & (place < POSITIONS)[None, :]
        tile = tl.load(x + _places(sample, channel, place, x_stride, W), mask=mask, other=0.0).to(tl.float32)
        sums += tl.where(mask, (tile - centre) * (tile - centre), 0.0)
    spread = 1.0 / tl.sqrt_rn(tl.sum(tl.sum(sums, 1), 0) / (WIDE * POSITIONS) + eps)
    tl.store(mean + sample * GROUPS + tl.program_id(0), centre)
    tl.store(rstd + sample * GROUPS + tl.program_id(0), spread)
    factor = tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)[:, None] * spread
    shift = tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)[:, None]
    for start in range(0, POSITIONS, COLUMNS):
        place = start + tl.arange(0, COLUMNS)
        mask = live[:, None] & (place < POSITIONS)[None, :]
        tile = tl.load(x + _places(sample, channel, place, x_stride, W), mask=mask, other=0.0).to(tl.float32)
        value = (tile - centre) * factor + shift
        tl.store(y + _places(sample, channel, place, y_stride, W), value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _group_norm_kernel(
    x: tl.tensor,  # [N, C, H, W]
    g: tl.tensor,  # [N, C, H, W]
    grad_x: tl.tensor,  # [N, C, H, W], as x
    mean: tl.tensor,  # fp32 [N, groups]
    rstd: tl.tensor,  # fp32 [N, groups]
    weight: tl.tensor,  # [C]
    weight_out: tl.tensor,  # [B, C]
    bias_out: tl.tensor,  # [B, C]
    squares: tl.tensor,  # float64 [B, groups]
    x_stride: tl.tuple,
    g_stride: tl.tuple,
    grad_x_stride: tl.tuple,
    weight_stride: tl.tuple,
    bias_stride: tl.tuple,
    squares_stride: tl.tensor,
    draws: tl.tensor,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,  # channels per group
    POSITIONS: tl.constexpr,
    W: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SQUARES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Program (group, unit)."""
    unit = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    channel = tl.program_id(0) * WIDE + row
    live = row < WIDE
    factor = tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)
    scale_sum = tl.zeros((ROWS,), dtype=tl.float32)
    shift_sum = tl.zeros((ROWS,), dtype=tl.float32)
    for draw in range(draws):
        sample = unit * draws + draw
        statistic = sample * (CHANNELS // WIDE) + tl.program_id(0)
        centre, spread = tl.load(mean + statistic).to(tl.float32), tl.load(rstd + statistic).to(tl.float32)
        scale_part = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        shift_part = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, POSITIONS, COLUMNS):
            place = start + tl.arange(0, COLUMNS)
            mask = live[:, None] & (place < POSITIONS)[None, :]
            g_tile = tl.load(g + _places(sample, channel, place, g_stride, W), mask=mask, other=0.0).to(
                tl.float32
            )
            x_tile = tl.load(x + _places(sample, channel, place, x_stride, W), mask=mask, other=0.0).to(
                tl.float32
            )
            shift_part += g_tile
            scale_part += g_tile * ((x_tile - centre) * spread)
        shift, scale = tl.sum(shift_part, 1), tl.sum(scale_part, 1)
        shift_sum += shift
        scale_sum += scale
        g_mean = tl.sum(factor * shift, 0) / (WIDE * POSITIONS)
        gx_mean = tl.sum(factor * scale, 0) / (WIDE * POSITIONS)
        for start in range(0, POSITIONS, COLUMNS):
            place = start + tl.arange(0, COLUMNS)
            mask = live[:, None] & (place < POSITIONS)[None, :]
            g_tile = tl.load(g + _places(sample, channel, place, g_stride, W), mask=mask, other=0.0).to(
                tl.float32
            )
            x_tile = tl.load(x + _places(sample, channel, place, x_stride, W), mask=mask, other=0.0).to(
                tl.float32
            )
            value = spread * (g_tile * factor[:, None] - g_mean - (x_tile - centre) * spread * gx_mean)
            out = grad_x + _places(sample, channel, place, grad_x_stride, W)
            tl.store(out, value.to(grad_x.dtype.element_ty), mask=mask)
    weight_place = weight_out + unit * weight_stride[0] + channel * weight_stride[1]
    scale_sum = store_value(weight_place, scale_sum, live, ACCUMULATE).to(tl.float64)
    bias_place = bias_out + unit * bias_stride[0] + channel * bias_stride[1]
    shift_sum = store_value(bias_place, shift_sum, live, ACCUMULATE).to(tl.float64)
    if SQUARES:
        part = tl.sum(scale_sum * scale_sum + shift_sum * shift_sum, 0)
        tl.store(squares + unit * squares_stride + tl.program_id(0), part)


@triton.jit
def _places(
    sample: tl.tensor, channel: tl.tensor, place: tl.tensor, stride: tl.tuple, W: tl.constexpr
) -> tl.tensor:
    """Return offsets [channels, positions] of one sample's elements."""
    position = place // W * stride[2] + place % W * stride[3]
    return sample * stride[0] + (channel * stride[1])[:, None] + position[None, :]
