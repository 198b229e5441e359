"""The kernels of `rows_norm`: a program owns a sample's channels, or a slice of whole groups where samples are few.

A tile is [positions, channels], read in runs of channels: in bf16, 64 channels are 128 contiguous bytes. Both kernels
pass twice over the sample, the second time mostly from cache. The statistics are fp32 sums around the first pixel's
group mean: plain sums would cancel where the mean is far from 0.

Channels lie in the tile group by group, each padded to a power of two, so that a sum over a group is a reshape.
"""

import triton
import triton.language as tl

from dpkernels.rows_norm_tiles import (
    affine_of,
    channels_of,
    constant_of,
    first_pixel,
    group_sum,
    load_product,
    load_tile,
    operand,
    store_product,
    store_sum,
    summed_tile,
    through_act,
    weight_of_product,
)


@triton.jit
def _rows_forward_kernel(
    a: tl.tensor,  # [N, positions, first]
    b: tl.tensor,  # [N, positions, second]
    term: tl.tensor,  # as a, which is their sum, written here, if S.terms
    more: tl.tensor,  # as a
    level: tl.tensor,  # [first]: added to the terms
    added: tl.tensor,  # [C]
    shift: tl.tensor,  # [N, C]
    weight: tl.tensor,  # [C]
    bias: tl.tensor,  # [C]
    through: tl.tensor,  # [O, C]
    y: tl.tensor,  # [N, positions, C]
    product: tl.tensor,  # [N, positions, O]
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
    OUT: tl.constexpr = TILE.out
    POSITIONS: tl.constexpr = S.positions
    CHANNELS: tl.constexpr = S.first + S.second
    sample = tl.program_id(1).to(tl.int64)
    channel, live = channels_of(S, GROUPS, WIDE)
    extra = constant_of(added, shift, sample, channel, live, S)
    first = first_pixel(a, b, term, more, level, sample, channel, live, S)
    around = group_sum(tl.where(live, first + extra, 0.0), GROUPS, WIDE) / S.wide
    offset = extra - around
    sums = tl.zeros((ROWS, GROUPS * WIDE), dtype=tl.float32)
    squares = tl.zeros((ROWS, GROUPS * WIDE), dtype=tl.float32)
    for start in range(0, POSITIONS, ROWS):
        place = start + tl.arange(0, ROWS)
        inside = (place < POSITIONS)[:, None] & live[None, :]
        if S.terms:
            z = summed_tile(a, b, term, more, level, sample, place, channel, inside, S) + offset[None, :]
        else:
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
    factor, constant = affine_of(weight, bias, channel, live)
    factor *= spread
    offset = offset - total
    if S.out:
        factors = weight_of_product(through, channel, live, S, OUT)
    if S.terms:
        tl.debug_barrier()  # the sum is read as other threads may have written it
    for start in range(0, POSITIONS, ROWS):
        place = start + tl.arange(0, ROWS)
        inside = (place < POSITIONS)[:, None] & live[None, :]
        tile = load_tile(a, b, sample, place, channel, inside, S)
        value = (tile + offset[None, :]) * factor[None, :] + constant[None, :]
        if S.act:
            value = value * tl.sigmoid(value)
        row = (sample * POSITIONS + place)[:, None]
        tl.store(y + row * CHANNELS + channel[None, :], value.to(y.dtype.element_ty), mask=inside)
        if S.out:
            result = tl.dot(operand(tile, a, S), operand(factors, a, S))
            store_product(product, result, row, place, S, OUT)


@triton.jit
def _rows_backward_kernel(
    a: tl.tensor,  # as in _rows_forward_kernel
    b: tl.tensor,
    added: tl.tensor,
    shift: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    through: tl.tensor,
    g: tl.tensor,  # [N, positions, C]
    g_product: tl.tensor,  # [N, positions, O]
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
    OUT: tl.constexpr = TILE.out
    POSITIONS: tl.constexpr = S.positions
    CHANNELS: tl.constexpr = S.first + S.second
    sample = tl.program_id(1).to(tl.int64)
    channel, live = channels_of(S, GROUPS, WIDE)
    statistic = sample * S.all + channel // S.wide
    spread = tl.load(rstd + statistic, mask=live, other=0.0)
    offset = constant_of(added, shift, sample, channel, live, S) - tl.load(
        mean + statistic, mask=live, other=0.0
    )
    factor, constant = affine_of(weight, bias, channel, live)
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
    if S.out:
        factors = tl.trans(weight_of_product(through, channel, live, S, OUT))
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
        if S.out:
            towards = load_product(g_product, row, place, S, OUT)
            value = tl.dot(operand(towards, a, S), operand(factors, a, S), value)
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
