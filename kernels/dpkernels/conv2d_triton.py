"""Triton kernels of `conv2d`: each unit's weight and bias gradient in one launch.

One matrix product per unit, g (Cout × K·H'·W') times the patches of x (K·H'·W' × kh·kw·Cin): patches are read
straight from x (implicit im2col), and the reduction runs over the unit's K draws and all positions in one fp32
accumulator. A program owns one tile of one unit; an extra column of tiles holds the bias. With `squares` each program
also writes the sum of squares of what it stored, so norms need no second pass. `add_clipped_conv2d` repeats the
products tile by tile, sums each unit's scaled, rounded tile in int64 registers and adds that to the total atomically,
which integers allow: no per-unit gradient is ever stored.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.conv2d_taps_triton import launch_rows_of_taps, suits_rows_of_taps
from dpkernels.conv2d_tiles import (
    PLAIN,
    Geometry,
    Shape,
    bias_tile,
    layer_shape,
    mode_of,
    put_tile,
    require_indexable,
    tiles,
    weight_place,
    weight_tile,
)
from dpkernels.device import gemm_tile, precision_of, recompute_programs
from dpkernels.grid import add_shared, rint

__all__ = [
    "Geometry",
    "add_clipped_conv2d",
    "conv2d_grads",
    "conv2d_grads_of_two",
    "conv2d_parts",
    "conv2d_squares",
    "suits_one_launch",
]


def conv2d_grads(
    x: Tensor,
    grad_out: Tensor,
    weight_out: Tensor,
    bias_out: Tensor | None,
    geometry: Geometry = PLAIN,
    accumulate: bool = False,
    squares: Tensor | None = None,
) -> None:
    """Write each unit's weight and bias gradient in one launch. PRIVATE.

    x [N, Cin, H, W] and grad_out [N, Cout, H', W'], fp32, bf16 or fp16, any strides, N = B·K with a unit's K
    draws contiguous; weight_out [B, Cout, Cin, kh, kw] and bias_out [B, Cout] or None, fp32 or bf16, any
    strides; `accumulate` adds to what they hold. squares, if given, is float64 [B, conv2d_parts(...)] and
    receives the parts of each unit's squared norm, of the values as stored. Raises ValueError if a unit's samples
    exceed 32-bit offsets.
    """
    require_indexable(x, grad_out, len(weight_out))
    shape = layer_shape(x, grad_out, tuple(weight_out.shape[1:]), bias_out is not None, geometry)
    _launch(x, grad_out, weight_out, bias_out, shape, len(weight_out), accumulate, squares)


def suits_one_launch(sources: Sequence[Tensor], weight_shape: tuple[int, ...]) -> bool:
    """Return whether `conv2d_grads_of_two` covers these inputs, for weights [Cout, :, kh, kw]: one tile for both."""
    rows, *taps = weight_shape
    return len({gemm_tile(precision_of(x.dtype), (rows, x.shape[1], *taps)) for x in sources}) == 1


def conv2d_grads_of_two(
    sources: Sequence[Tensor],
    grad_out: Tensor,
    weight_outs: Sequence[Tensor],
    bias_out: Tensor | None,
    geometry: Geometry,
    accumulate: bool,
    squares: Sequence[Tensor],
) -> None:
    """Do as `conv2d_grads` for two concatenated inputs, in one launch, which reads grad_out once. PRIVATE.

    weight_outs and squares: for each input; the bias counts to the first's.
    """
    units, with_bias = len(weight_outs[0]), bias_out is not None
    shapes = []
    for number, (x, weight) in enumerate(zip(sources, weight_outs, strict=True)):
        require_indexable(x, grad_out, units)
        of_bias = with_bias and number == 0
        shapes.append(layer_shape(x, grad_out, tuple(weight.shape[1:]), of_bias, geometry))
    tile = gemm_tile(precision_of(grad_out.dtype), shapes[0][:4])
    bias = grad_out if bias_out is None else bias_out
    counts = [tiles(tile, shape[:4], shape.bias) for shape in shapes]
    # A unit's programs run side by side, so that what they share is read from memory once.
    _two_sources_kernel[(max(counts), 2, units)](
        *(tuple(sources), grad_out, tuple(weight_outs), bias, tuple(squares)),
        *(sources[0].stride(), sources[1].stride(), grad_out.stride(), weight_outs[0].stride()),
        *(bias.stride()[:2], tuple(part.stride(0) for part in squares), len(grad_out) // units),
        *(*shapes, *counts, tile, mode_of(grad_out.dtype, True, accumulate, True)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def conv2d_parts(
    weight_shape: tuple[int, ...], bias: bool, dtype: torch.dtype, *, recompute: bool = False
) -> int:
    """Return how many parts of a squared norm a launch writes per unit; weight [Cout, Cin, kh, kw], dtype of x.

    recompute: for `conv2d_squares`, which uses the tiles of `add_clipped_conv2d`.
    """
    return tiles(gemm_tile(precision_of(dtype), weight_shape, recompute=recompute), weight_shape, bias)


def conv2d_squares(
    x: Tensor,
    grad_out: Tensor,
    weight_shape: tuple[int, ...],
    bias: bool,
    geometry: Geometry,
    squares: Tensor,
) -> None:
    """Write the parts of each unit's squared norm without storing a gradient. PRIVATE. Triton only.

    squares float64 [B, conv2d_parts(..., recompute=True)]. Uses the tiles of `add_clipped_conv2d`, so that what is
    summed there is bit-identical to what is squared here: summed in another order, a unit whose terms cancel could
    add more than its norm says and exceed the clip norm.
    """
    require_indexable(x, grad_out, len(squares))
    shape = layer_shape(x, grad_out, weight_shape, bias, geometry)
    _launch(x, grad_out, None, None, shape, len(squares), False, squares)


def add_clipped_conv2d(
    x: Tensor,
    grad_out: Tensor,
    scale: Tensor,
    weight_total: Tensor,
    bias_total: Tensor | None,
    geometry: Geometry = PLAIN,
) -> None:
    """Add Σ_b rint(scale[b] · gradient of unit b) to the sums without storing a gradient. PRIVATE. Triton only.

    scale fp32 [B]: a unit whose scale is 0 adds nothing, whatever it holds. weight_total int64
    [Cout, Cin, kh, kw] and bias_total int64 [Cout], contiguous; x and grad_out as in `conv2d_grads`.
    """
    require_indexable(x, grad_out, len(scale))
    shape = layer_shape(x, grad_out, tuple(weight_total.shape), bias_total is not None, geometry)
    tile = gemm_tile(precision_of(x.dtype), shape[:4], recompute=True)
    count, units = tiles(tile, weight_total.shape, shape.bias), len(scale)
    draws = len(x) // units
    _recompute_kernel[(count, recompute_programs(count, units, draws * shape.oh * shape.ow))](
        *(x, grad_out, scale, weight_total, weight_total if bias_total is None else bias_total),
        *(x.stride(), grad_out.stride(), units, draws),
        *(shape, tile, mode_of(x.dtype)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
    )


def _launch(
    x: Tensor,
    grad_out: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    shape: Shape,
    units: int,
    accumulate: bool,
    squares: Tensor | None,
) -> None:
    tile = gemm_tile(precision_of(x.dtype), shape[:4], recompute=weight_out is None)
    # An unused pointer argument must still be a tensor: grad_out stands in.
    weight, bias, parts = (
        grad_out if tensor is None else tensor for tensor in (weight_out, bias_out, squares)
    )
    arguments = (
        *(x, grad_out, weight, bias, parts),
        *(x.stride(), grad_out.stride(), weight.stride() if weight_out is not None else (0,) * 5),
        *(bias.stride()[:2], parts.stride(0), len(x) // units),
    )
    mode = mode_of(x.dtype, weight_out is not None, accumulate, squares is not None)
    if weight_out is not None and suits_rows_of_taps(x, grad_out, shape, tile):
        launch_rows_of_taps(arguments, units, shape, tile, mode)
        return
    _unit_kernel[(tiles(tile, shape[:4], shape.bias), units)](
        *arguments,
        *(shape, tile, mode),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=weight_out is not None,  # a norm alone is computed as its sum will be
    )


@triton.jit
def _unit_kernel(
    x: tl.tensor,  # [N, Cin, H, W]
    g: tl.tensor,  # [N, Cout, H', W'], as x fp32, bf16 or fp16
    weight: tl.tensor,  # [B, Cout, Cin, kh, kw] fp32 or bf16
    bias: tl.tensor,  # [B, Cout], as weight
    squares: tl.tensor,  # float64 [B, tiles]
    x_stride: tl.tuple,
    g_stride: tl.tuple,
    weight_stride: tl.tuple,
    bias_stride: tl.tuple,
    squares_stride: tl.tensor,
    draws: tl.tensor,
    S: tl.constexpr,  # Shape
    TILE: tl.constexpr,  # Tile
    MODE: tl.constexpr,  # Mode
) -> None:
    """Program (tile, unit): one tile of one unit's gradient, stored, squared and summed, or both."""
    strides = (x_stride, g_stride, weight_stride, bias_stride, squares_stride)
    unit_program(x, g, weight, bias, squares, strides, tl.program_id(1), draws, S, TILE, MODE)


@triton.jit
def _two_sources_kernel(
    sources: tl.tuple,  # two [N, Cin, H, W]
    g: tl.tensor,  # as in _unit_kernel
    weights: tl.tuple,  # two [B, Cout, Cin, kh, kw] of one layout
    bias: tl.tensor,
    squares: tl.tuple,  # two float64 [B, tiles]
    first_stride: tl.tuple,
    second_stride: tl.tuple,
    g_stride: tl.tuple,
    weight_stride: tl.tuple,
    bias_stride: tl.tuple,
    squares_strides: tl.tuple,
    draws: tl.tensor,
    FIRST: tl.constexpr,  # Shape of each
    SECOND: tl.constexpr,
    TILES: tl.constexpr,  # of each
    OTHERS: tl.constexpr,
    TILE: tl.constexpr,
    MODE: tl.constexpr,
) -> None:
    """Program (tile, source, unit). Two branches: selecting pointers would lose their alignment."""
    unit = tl.program_id(2)
    if tl.program_id(1) == 0:
        if tl.program_id(0) < TILES:
            strides = (first_stride, g_stride, weight_stride, bias_stride, squares_strides[0])
            unit_program(sources[0], g, weights[0], bias, squares[0], strides, unit, draws, FIRST, TILE, MODE)
    elif tl.program_id(0) < OTHERS:
        strides_ = (second_stride, g_stride, weight_stride, bias_stride, squares_strides[1])
        unit_program(sources[1], g, weights[1], bias, squares[1], strides_, unit, draws, SECOND, TILE, MODE)


@triton.jit
def unit_program(
    x: tl.tensor,
    g: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    squares: tl.tensor,
    strides: tl.tuple,
    number: tl.tensor,
    draws: tl.tensor,
    S: tl.constexpr,
    TILE: tl.constexpr,
    MODE: tl.constexpr,
) -> None:
    """The body of `_unit_kernel` for unit `number`, and of each of several layers in one launch."""
    x_stride, g_stride, weight_stride, bias_stride, squares_stride = strides
    ROW_TILES: tl.constexpr = (S.cout + TILE.rows - 1) // TILE.rows
    COLUMN_TILES: tl.constexpr = (S.cin * S.kh * S.kw + TILE.columns - 1) // TILE.columns
    unit = number.to(tl.int64)
    row = tl.program_id(0) % ROW_TILES * TILE.rows + tl.arange(0, TILE.rows)
    x_unit = x + unit * draws * x_stride[0]
    g_unit = g + unit * draws * g_stride[0]
    square = squares + unit * squares_stride + tl.program_id(0)
    if tl.program_id(0) // ROW_TILES < COLUMN_TILES:
        column = tl.program_id(0) // ROW_TILES * TILE.columns + tl.arange(0, TILE.columns)
        tile = weight_tile(x_unit, g_unit, x_stride, g_stride, row, column, draws, S, TILE, MODE)
        place = weight_place(weight + unit * weight_stride[0], weight_stride, row, column, S)
        mask = (row < S.cout)[:, None] & (column < S.cin * S.kh * S.kw)[None, :]
        put_tile(place, tile, mask, square, MODE)
    else:
        bias_place = bias + unit * bias_stride[0] + row * bias_stride[1]
        put_tile(bias_place, bias_tile(g_unit, g_stride, row, draws, S, TILE), row < S.cout, square, MODE)


@triton.jit
def _recompute_kernel(
    x: tl.tensor,  # as in _unit_kernel
    g: tl.tensor,
    scale: tl.tensor,  # fp32 [B]
    weight: tl.tensor,  # int64 [Cout, Cin, kh, kw], contiguous
    bias: tl.tensor,  # int64 [Cout]
    x_stride: tl.tuple,
    g_stride: tl.tuple,
    units: tl.tensor,
    draws: tl.tensor,
    S: tl.constexpr,
    TILE: tl.constexpr,
    MODE: tl.constexpr,
) -> None:
    """Program (tile, share): the tile's sum over the program's share of the units, each scaled and rounded.

    Units are dealt to the programs in turn. Several programs add to an element, but integers: no order shows.
    """
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    ROW_TILES: tl.constexpr = (S.cout + TILE.rows - 1) // TILE.rows
    COLUMN_TILES: tl.constexpr = (S.cin * S.kh * S.kw + TILE.columns - 1) // TILE.columns
    row = tl.program_id(0) % ROW_TILES * TILE.rows + tl.arange(0, TILE.rows)
    column = tl.program_id(0) // ROW_TILES * TILE.columns + tl.arange(0, TILE.columns)
    first, programs = tl.program_id(1), tl.num_programs(1)
    if tl.program_id(0) // ROW_TILES < COLUMN_TILES:
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.int64)
        for unit in range(first, units, programs):
            factor = tl.load(scale + unit)
            if factor != 0.0:
                x_unit = x + tl.cast(unit, tl.int64) * draws * x_stride[0]
                g_unit = g + tl.cast(unit, tl.int64) * draws * g_stride[0]
                tile = weight_tile(x_unit, g_unit, x_stride, g_stride, row, column, draws, S, TILE, MODE)
                total += rint(tile * factor).to(tl.int64)
        tap, channel = column // S.cin, column % S.cin
        place = weight + (row * (S.cin * S.kh * S.kw))[:, None] + (channel * (S.kh * S.kw) + tap)[None, :]
        add_shared(place, total, (row < S.cout)[:, None] & (tap < S.kh * S.kw)[None, :])
    else:
        vector = tl.zeros((ROWS,), dtype=tl.int64)
        for unit in range(first, units, programs):
            factor = tl.load(scale + unit)
            if factor != 0.0:
                g_unit = g + tl.cast(unit, tl.int64) * draws * g_stride[0]
                vector += rint(bias_tile(g_unit, g_stride, row, draws, S, TILE) * factor).to(tl.int64)
        add_shared(bias + row, vector, row < S.cout)
