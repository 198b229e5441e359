"""Triton kernels of `rows_norm`: a program owns a sample's channels, or a slice of whole groups where samples are few.

A tile is [positions, channels], read in runs of channels: in bf16, 64 channels are 128 contiguous bytes. Both kernels
pass twice over the sample, the second time mostly from cache. The statistics are fp32 sums around the first pixel's
group mean: plain sums would cancel where the mean is far from 0.

Channels lie in the tile group by group, each padded to a power of two, so that a sum over a group is a reshape.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.grid import store_value
from dpkernels.rows_norm_tiles import channels_of, constant_of, group_sum, load_tile, store_sum, through_act
from dpkernels.rows_triton import require_rows

# Elements of a tile; per warp. Measured on an H100 with a sketch of these kernels: 8192 and 8 warps.
ELEMENTS, ELEMENTS_PER_WARP = 8192, 1024
# Programs that keep a large GPU busy; below, samples are cut into slices of whole groups, of at least 64 bytes in bf16.
BUSY, SLICE = 264, 32


class Shape(NamedTuple):
    """The sizes of a launch, compiled in. wide: channels per group; groups: per program, of `all` in the layer."""

    first: int  # channels of the first source
    second: int  # of the second, 0 if there is none
    positions: int
    all: int
    groups: int
    wide: int
    act: bool
    added: bool
    shift: bool


class Tile(NamedTuple):
    """A program's tile: rows are positions, columns are channels, `groups` x `wide`, powers of two."""

    rows: int
    groups: int
    wide: int


def norm_act(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    act: bool,
    added: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `rows_norm.norm_act` does."""
    require_rows(*sources)
    shape, tile, grid = _layout(sources, groups, act, added, shift)
    a, b = sources[0], sources[-1]
    y = torch.empty(*a.shape[:3], len(weight), dtype=a.dtype, device=a.device)
    mean = torch.empty(len(a), groups, device=a.device)
    rstd = torch.empty_like(mean)
    _rows_forward_kernel[grid](
        *(a, b, _or(added, weight), _or(shift, weight), weight, bias, y, mean, rstd, eps, shape, tile),
        num_warps=_warps(tile),
    )
    return y, mean, rstd


def norm_act_backward(
    sources: Sequence[Tensor],
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    act: bool,
    added: Tensor | None,
    shift: Tensor | None,
    plus: Sequence[Sequence[Tensor]],
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return what `rows_norm.norm_act_backward` does."""
    require_rows(*sources, *(tensor for extra in plus for tensor in extra))
    shape, tile, grid = _layout(sources, mean.shape[1], act, added, shift)
    grads = tuple(torch.empty_like(source) for source in sources)
    sums = torch.empty(len(mean), 3, len(weight), device=mean.device)
    plus_a, plus_b = (*plus, ())[:2]
    # An unused pointer argument must still be a tensor: the source stands in.
    more_a, more_b = (
        (*extra, source, source)[:2] for extra, source in ((plus_a, sources[0]), (plus_b, sources[-1]))
    )
    _rows_backward_kernel[grid](
        *(
            sources[0],
            sources[-1],
            _or(added, weight),
            _or(shift, weight),
            weight,
            bias,
            grad_out.contiguous(),
        ),
        *(mean, rstd, grads[0], grads[-1], *more_a, *more_b, sums, shape, tile, len(plus_a), len(plus_b)),
        num_warps=_warps(tile),
    )
    return grads, sums


def unit_sums(sums: Tensor, out: Tensor, columns: Sequence[int], squares: Tensor) -> None:
    """Do what `rows_norm.unit_sums` does."""
    require_rows(sums)
    units, channels = len(out), sums.shape[2]
    first, second, third = (*columns, 0, 0)[:3]
    _draws_kernel[(len(columns), units)](
        *(sums, out, squares, first, second, third, out.stride(0), squares.stride(0), len(sums) // units),
        *(channels, sums.shape[1], triton.next_power_of_2(channels)),
        num_warps=1,
    )


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor.contiguous()


def _warps(tile: Tile) -> int:
    return max(1, min(8, tile.rows * tile.groups * tile.wide // ELEMENTS_PER_WARP))


def _layout(
    sources: Sequence[Tensor], groups: int, act: bool, added: Tensor | None, shift: Tensor | None
) -> tuple[Shape, Tile, tuple[int, int]]:
    """Return the sizes, the tile and the grid (slices, samples)."""
    samples, height, width, first = sources[0].shape
    second = sources[1].shape[3] if len(sources) == 2 else 0
    channels, positions = first + second, height * width
    wide = channels // groups
    slices = _slices(samples, channels, groups)
    shape = Shape(
        *(first, second, positions, groups, groups // slices, wide, act, added is not None),
        shift is not None,
    )
    columns = triton.next_power_of_2(shape.groups), triton.next_power_of_2(wide)
    # Padded groups need more registers for their masks: half a tile does not spill.
    elements = ELEMENTS if columns[1] == wide else ELEMENTS // 2
    rows = max(1, elements // (columns[0] * columns[1]))
    return shape, Tile(min(triton.next_power_of_2(positions), rows), *columns), (slices, samples)


def _slices(samples: int, channels: int, groups: int) -> int:
    """Return into how many slices of whole groups a sample is cut."""
    possible = [n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or channels // n >= SLICE)]
    return next((n for n in possible if n * samples >= BUSY), possible[-1])


@triton.jit
def _rows_forward_kernel(
    a: tl.tensor,  # [N, positions, first]
    b: tl.tensor,  # [N, positions, second]
    added: tl.tensor,  # [C]
    shift: tl.tensor,  # [N, C]
    weight: tl.tensor,  # [C]
    bias: tl.tensor,  # [C]
    y: tl.tensor,  # [N, positions, C]
    mean: tl.tensor,  # fp32 [N, groups]
    rstd: tl.tensor,  # fp32 [N, groups]
    eps: tl.tensor,
    S: tl.constexpr,  # Shape
    TILE: tl.constexpr,  # Tile
) -> None:
    """Program (slice, sample)."""
    ROWS: tl.constexpr = TILE.rows
    GROUPS: tl.constexpr = TILE.groups
    WIDE: tl.constexpr = TILE.wide
    POSITIONS: tl.constexpr = S.positions
    CHANNELS: tl.constexpr = S.first + S.second
    sample = tl.program_id(1).to(tl.int64)
    channel, live = channels_of(S, GROUPS, WIDE)
    extra = constant_of(added, shift, sample, channel, live, S)
    first = tl.load(a + sample * (POSITIONS * S.first) + channel, mask=live & (channel < S.first), other=0.0)
    first = first.to(tl.float32)
    if S.second:
        other = tl.load(
            b + sample * (POSITIONS * S.second) + channel - S.first,
            mask=live & (channel >= S.first),
            other=0.0,
        )
        first += other.to(tl.float32)
    around = group_sum(tl.where(live, first + extra, 0.0), GROUPS, WIDE) / S.wide
    offset = extra - around
    sums = tl.zeros((ROWS, GROUPS * WIDE), dtype=tl.float32)
    squares = tl.zeros((ROWS, GROUPS * WIDE), dtype=tl.float32)
    for start in range(0, POSITIONS, ROWS):
        place = start + tl.arange(0, ROWS)
        inside = (place < POSITIONS)[:, None] & live[None, :]
        z = load_tile(a, b, sample, place, channel, inside, S) + offset[None, :]
        z = tl.where(inside, z, 0.0)
        sums += z
        squares += z * z
    total = group_sum(tl.sum(sums, 0), GROUPS, WIDE) / (S.wide * POSITIONS)
    power = group_sum(tl.sum(squares, 0), GROUPS, WIDE) / (S.wide * POSITIONS)
    spread = 1.0 / tl.sqrt_rn(tl.maximum(power - total * total, 0.0) + eps)
    centre = around + total
    leads = live & ((channel % S.wide) == 0)
    statistic = sample * S.all + channel // S.wide
    tl.store(mean + statistic, centre, mask=leads)
    tl.store(rstd + statistic, spread, mask=leads)
    factor = tl.load(weight + channel, mask=live, other=0.0).to(tl.float32) * spread
    constant = tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)
    offset = offset - total
    for start in range(0, POSITIONS, ROWS):
        place = start + tl.arange(0, ROWS)
        inside = (place < POSITIONS)[:, None] & live[None, :]
        z = load_tile(a, b, sample, place, channel, inside, S) + offset[None, :]
        value = z * factor[None, :] + constant[None, :]
        if S.act:
            value = value * tl.sigmoid(value)
        out = y + (sample * POSITIONS + place)[:, None] * CHANNELS + channel[None, :]
        tl.store(out, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _rows_backward_kernel(
    a: tl.tensor,  # as in _rows_forward_kernel
    b: tl.tensor,
    added: tl.tensor,
    shift: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    g: tl.tensor,  # [N, positions, C]
    mean: tl.tensor,
    rstd: tl.tensor,
    grad_a: tl.tensor,  # as a
    grad_b: tl.tensor,  # as b
    plus_a: tl.tensor,  # two as a, two as b, added to the gradients
    more_a: tl.tensor,
    plus_b: tl.tensor,
    more_b: tl.tensor,
    sums: tl.tensor,  # fp32 [N, 3, C]
    S: tl.constexpr,
    TILE: tl.constexpr,
    PLUS_A: tl.constexpr,
    PLUS_B: tl.constexpr,
) -> None:
    """Program (slice, sample)."""
    ROWS: tl.constexpr = TILE.rows
    GROUPS: tl.constexpr = TILE.groups
    WIDE: tl.constexpr = TILE.wide
    POSITIONS: tl.constexpr = S.positions
    CHANNELS: tl.constexpr = S.first + S.second
    sample = tl.program_id(1).to(tl.int64)
    channel, live = channels_of(S, GROUPS, WIDE)
    statistic = sample * S.all + channel // S.wide
    spread = tl.load(rstd + statistic, mask=live, other=0.0)
    offset = constant_of(added, shift, sample, channel, live, S) - tl.load(
        mean + statistic, mask=live, other=0.0
    )
    factor = tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)
    constant = tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)
    scale_sum = tl.zeros((ROWS, GROUPS * WIDE), dtype=tl.float32)
    shift_sum = tl.zeros((ROWS, GROUPS * WIDE), dtype=tl.float32)
    for start in range(0, POSITIONS, ROWS):
        place = start + tl.arange(0, ROWS)
        inside = (place < POSITIONS)[:, None] & live[None, :]
        normal = (load_tile(a, b, sample, place, channel, inside, S) + offset[None, :]) * spread[None, :]
        pulled = through_act(g, normal, sample, place, channel, inside, factor, constant, S)
        scale_sum += pulled * normal
        shift_sum += pulled
    scale, straight = tl.sum(scale_sum, 0), tl.sum(shift_sum, 0)
    turned = group_sum(factor * scale, GROUPS, WIDE) / (S.wide * POSITIONS)
    level = group_sum(factor * straight, GROUPS, WIDE) / (S.wide * POSITIONS)
    z_sum = tl.zeros((ROWS, GROUPS * WIDE), dtype=tl.float32)
    for start in range(0, POSITIONS, ROWS):
        place = start + tl.arange(0, ROWS)
        inside = (place < POSITIONS)[:, None] & live[None, :]
        normal = (load_tile(a, b, sample, place, channel, inside, S) + offset[None, :]) * spread[None, :]
        pulled = through_act(g, normal, sample, place, channel, inside, factor, constant, S)
        value = spread[None, :] * (pulled * factor[None, :] - level[None, :] - normal * turned[None, :])
        value = tl.where(inside, value, 0.0)
        if S.added or S.shift:
            z_sum += value
        row = (sample * POSITIONS + place)[:, None]
        own, place_a = inside & (channel < S.first)[None, :], row * S.first + channel[None, :]
        store_sum(grad_a, value, plus_a, more_a, place_a, own, PLUS_A)
        if S.second:
            theirs = inside & (channel >= S.first)[None, :]
            place_b = row * S.second + (channel - S.first)[None, :]
            store_sum(grad_b, value, plus_b, more_b, place_b, theirs, PLUS_B)
    out = sums + sample * (3 * CHANNELS) + channel
    tl.store(out, scale, mask=live)
    tl.store(out + CHANNELS, straight, mask=live)
    if S.added or S.shift:
        tl.store(out + 2 * CHANNELS, tl.sum(z_sum, 0), mask=live)


@triton.jit
def _draws_kernel(
    sums: tl.tensor,  # fp32 [N, KINDS, C]
    out: tl.tensor,  # [B, width]
    squares: tl.tensor,  # float64 [B, segments]
    first: tl.tensor,  # the segments' first columns in out
    second: tl.tensor,
    third: tl.tensor,
    out_stride: tl.tensor,
    squares_stride: tl.tensor,
    draws: tl.tensor,
    CHANNELS: tl.constexpr,
    KINDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (segment, unit)."""
    segment, unit = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    live = channel < CHANNELS
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for draw in range(draws):
        row = sums + ((unit * draws + draw) * KINDS + segment) * CHANNELS
        acc += tl.load(row + channel, mask=live, other=0.0)
    column = tl.where(segment == 0, first, tl.where(segment == 1, second, third))
    stored = store_value(out + unit * out_stride + column + channel, acc, live, False).to(tl.float64)
    tl.store(squares + unit * squares_stride + segment, tl.sum(stored * stored, 0))
