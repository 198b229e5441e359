"""The Triton kernel of `conv2d` for 3x3 convolutions in channels_last: a row of three taps per program.

With stride 1 and an output as large as the input, the position p of the output meets, at each tap, the input's
position p plus a constant. So positions are walked in memory order, in both tensors, and one loaded tile of g meets
three tiles of x, each in an accumulator of its own: a third of the loads of g, no division to find an address, and
masks that only say whether a tap falls outside the image. `conv2d_triton` sends here what fits and everything else to
its general kernel.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.conv2d_tiles import Mode, Shape, bias_tile, put_tile, weight_place
from dpkernels.device import Tile

# Three accumulators of a tile fit the registers of one warpgroup, and two such programs a processor.
WARPS, STAGES = 4, 3


def suits_rows_of_taps(x: Tensor, grad_out: Tensor, shape: Shape, tile: Tile) -> bool:
    """Return whether this kernel covers the layer: 16-bit, 3x3, stride 1, same size, channels_last, whole tiles."""
    same = (shape.kh, shape.kw, shape.oh, shape.ow) == (3, 3, shape.h, shape.w)
    plain = shape.scale == 1 and (shape.sh, shape.sw, shape.ph, shape.pw, shape.dh, shape.dw) == (1,) * 6
    whole = shape.cout % tile.rows == 0 and shape.cin % tile.columns == 0
    dense = all(
        operand.stride() == (shape.h * shape.w * channels, 1, shape.w * channels, channels)
        for operand, channels in ((x, shape.cin), (grad_out, shape.cout))
    )
    return x.dtype in (torch.bfloat16, torch.float16) and same and plain and whole and dense


def launch_rows_of_taps(arguments: tuple[Any, ...], units: int, shape: Shape, tile: Tile, mode: Mode) -> None:
    """Launch on the arguments of `conv2d_triton._unit_kernel`, whose parts of squared norms it writes. PRIVATE."""
    programs = shape.cout // tile.rows * (shape.kh * shape.cin // tile.columns + shape.bias)
    _taps_kernel[(programs, units)](*arguments, *(shape, tile, mode), num_warps=WARPS, num_stages=STAGES)


@triton.jit
def _taps_kernel(
    x: tl.tensor,  # [N, H, W, Cin] in memory, bf16 or fp16
    g: tl.tensor,  # [N, H, W, Cout] in memory, as x
    weight: tl.tensor,  # [B, Cout, Cin, 3, 3] fp32 or bf16
    bias: tl.tensor,  # [B, Cout], as weight
    squares: tl.tensor,  # float64 [B, tiles]
    x_stride: tl.tuple,  # unused: fixed by the layout
    g_stride: tl.tuple,
    weight_stride: tl.tuple,
    bias_stride: tl.tuple,
    squares_stride: tl.tensor,
    draws: tl.tensor,
    S: tl.constexpr,  # Shape
    TILE: tl.constexpr,  # Tile
    MODE: tl.constexpr,  # Mode
) -> None:
    """Program (row tile, channel tile, row of taps; then bias) x unit: three tiles of one unit's gradient."""
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    ROW_TILES: tl.constexpr = S.cout // TILE.rows
    CHANNEL_TILES: tl.constexpr = S.cin // TILE.columns
    SIZE: tl.constexpr = S.h * S.w
    unit = tl.program_id(1).to(tl.int64)
    row_tile = tl.program_id(0) % ROW_TILES
    row = row_tile * ROWS + tl.arange(0, ROWS)
    count = draws * SIZE
    g_unit = g + unit * count * S.cout
    square = squares + unit * squares_stride + row_tile
    if tl.program_id(0) // ROW_TILES < S.kh * CHANNEL_TILES:
        first = tl.program_id(0) // ROW_TILES % CHANNEL_TILES * COLUMNS
        tap_row = tl.program_id(0) // ROW_TILES // CHANNEL_TILES
        down = (tap_row - 1) * S.w  # from a position of the output to this row of taps
        channel = first + tl.arange(0, COLUMNS)
        x_unit = x + unit * count * S.cin + (down - 1) * S.cin + channel
        left = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        middle = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        right = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, count, TILE.depth):
            position = start + tl.arange(0, TILE.depth)
            live = position < count
            g_tile = tl.load(
                (g_unit + row)[:, None] + (position * S.cout)[None, :], mask=live[None, :], other=0.0
            )
            above, across = position % SIZE + down, position % S.w
            inside = live & (above >= 0) & (above < SIZE)
            x_place = x_unit[None, :] + (position * S.cin)[:, None]
            x_left = tl.load(x_place, mask=(inside & (across > 0))[:, None], other=0.0)
            x_middle = tl.load(x_place + S.cin, mask=inside[:, None], other=0.0)
            x_right = tl.load(x_place + 2 * S.cin, mask=(inside & (across < S.w - 1))[:, None], other=0.0)
            if MODE.upcast:
                g_tile, x_middle = g_tile.to(tl.float32), x_middle.to(tl.float32)
                x_left, x_right = x_left.to(tl.float32), x_right.to(tl.float32)
            left = tl.dot(g_tile, x_left, left)
            middle = tl.dot(g_tile, x_middle, middle)
            right = tl.dot(g_tile, x_right, right)
        weight_unit = weight + unit * weight_stride[0]
        everywhere = (row < S.cout)[:, None] & (channel < S.cin)[None, :]
        column = tap_row * S.kw * S.cin + channel
        # Norms' parts lie where the general kernel writes those of the same tiles.
        square += (tap_row * S.kw * CHANNEL_TILES + first // COLUMNS) * ROW_TILES
        place = weight_place(weight_unit, weight_stride, row, column, S)
        put_tile(place, left, everywhere, square, MODE)
        place = weight_place(weight_unit, weight_stride, row, column + S.cin, S)
        put_tile(place, middle, everywhere, square + CHANNEL_TILES * ROW_TILES, MODE)
        place = weight_place(weight_unit, weight_stride, row, column + 2 * S.cin, S)
        put_tile(place, right, everywhere, square + 2 * CHANNEL_TILES * ROW_TILES, MODE)
    else:
        bias_place = bias + unit * bias_stride[0] + row * bias_stride[1]
        square += S.kh * S.kw * CHANNEL_TILES * ROW_TILES
        put_tile(bias_place, bias_tile(g_unit, g_stride, row, draws, S, TILE), row < S.cout, square, MODE)
