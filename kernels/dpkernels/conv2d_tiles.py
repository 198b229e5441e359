"""Sizes and tiles of a convolution's per-unit gradients: the bodies that every kernel of `conv2d` shares."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.device import INTERPRETER, Tile, precision_of
from dpkernels.grid import store_value

Pair = tuple[int, int]
# Below 2³¹ by more than the last tile of a reduction reaches past its end.
MAX_ELEMENTS = 2**31 - 2**12


class Geometry(NamedTuple):
    """A convolution's stride, padding and dilation; scale: how many times its input is up-sampled, to the nearest."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    scale: int = 1


PLAIN = Geometry()


class Shape(NamedTuple):
    """One layer's sizes, compiled into its kernels; h and w: of its input once that is up-sampled `scale` times."""

    cout: int
    cin: int
    kh: int
    kw: int
    h: int
    w: int
    oh: int
    ow: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    bias: bool
    scale: int = 1


class Mode(NamedTuple):
    """A launch's arithmetic and outputs, compiled in.

    precision: of products of fp32 operands. upcast: for the interpreter, which would multiply bf16 bit patterns as
    integers and silently return garbage.
    """

    precision: str
    upcast: bool
    store: bool = True
    accumulate: bool = False
    squares: bool = False


def mode_of(dtype: torch.dtype, store: bool = True, accumulate: bool = False, squares: bool = False) -> Mode:
    """Return the mode of a launch on operands of `dtype`."""
    precision = "tf32" if precision_of(dtype) == "tf32" else "ieee"
    return Mode(precision, INTERPRETER, store, accumulate, squares)


def require_indexable(x: Tensor, grad_out: Tensor, units: int) -> None:
    """Raise ValueError if a unit's samples exceed 32-bit offsets, which would wrap into another unit's samples."""
    for operand in (x, grad_out):
        if len(operand) // units * operand.stride(0) >= MAX_ELEMENTS:
            raise ValueError(
                f"one unit's input to a layer has {len(operand) // units} x {operand.stride(0)} elements, but the "
                f"kernels index fewer than {MAX_ELEMENTS}: use fewer draws or smaller images"
            )


def layer_shape(
    x: Tensor, grad_out: Tensor, weight_shape: tuple[int, ...], bias: bool, geometry: Geometry
) -> Shape:
    """Return the sizes of the layer with input `x`."""
    (sh, sw), (ph, pw), (dh, dw), scale = geometry
    cout, cin, kh, kw = weight_shape
    h, w = scale * x.shape[2], scale * x.shape[3]
    _, _, oh, ow = grad_out.shape
    return Shape(cout, cin, kh, kw, h, w, oh, ow, sh, sw, ph, pw, dh, dw, bias, scale)


def tiles(tile: Tile, weight_shape: tuple[int, ...], bias: bool) -> int:
    """Return the number of tiles per unit, those of the bias included."""
    rows, channels, height, width = weight_shape
    return triton.cdiv(rows, tile.rows) * (triton.cdiv(channels * height * width, tile.columns) + bias)


@triton.jit
def weight_tile(
    x: tl.tensor,
    g: tl.tensor,
    x_stride: tl.tuple,
    g_stride: tl.tuple,
    row: tl.tensor,
    column: tl.tensor,
    draws: tl.tensor,
    S: tl.constexpr,
    TILE: tl.constexpr,
    MODE: tl.constexpr,
) -> tl.tensor:
    """Return one tile, fp32 [rows, columns], of the weight gradient of the unit that x and g point at.

    Columns run over (tap, input channel), channels fastest: neighbours are contiguous in channels_last, as
    positions are in NCHW, so that either layout is read in wide loads.
    """
    tap, channel = column // S.cin, column % S.cin
    tap_h, tap_w = tap // S.kw * S.dh - S.ph, tap % S.kw * S.dw - S.pw
    x_column = x + channel * x_stride[1]
    if S.scale == 1:
        x_column += tap_h * x_stride[2] + tap_w * x_stride[3]
    g_row = g + row * g_stride[1]
    count = draws * (S.oh * S.ow)
    # Bound first: triton 3.6 takes no field of a named tuple in a shape.
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, count, TILE.depth):
        place = start + tl.arange(0, TILE.depth)
        draw, oh, ow = place // (S.oh * S.ow), place // S.ow % S.oh, place % S.ow
        live = place < count
        g_place = draw * g_stride[0] + oh * g_stride[2] + ow * g_stride[3]
        g_tile = tl.load(
            g_row[:, None] + g_place[None, :], mask=(row < S.cout)[:, None] & live[None, :], other=0.0
        )
        h, w = (oh * S.sh)[:, None] + tap_h[None, :], (ow * S.sw)[:, None] + tap_w[None, :]
        inside = (h >= 0) & (h < S.h) & (w >= 0) & (w < S.w) & live[:, None] & (tap < S.kh * S.kw)[None, :]
        if S.scale == 1:
            x_place = (draw * x_stride[0] + oh * S.sh * x_stride[2] + ow * S.sw * x_stride[3])[:, None]
        else:
            x_place = (draw * x_stride[0])[:, None] + h // S.scale * x_stride[2] + w // S.scale * x_stride[3]
        x_tile = tl.load(x_column[None, :] + x_place, mask=inside, other=0.0)
        if MODE.upcast:
            g_tile, x_tile = g_tile.to(tl.float32), x_tile.to(tl.float32)
        if MODE.precision == "tf32":
            g_tile, x_tile = to_tf32(g_tile), to_tf32(x_tile)
        acc = tl.dot(g_tile, x_tile, acc, input_precision=MODE.precision)
    return acc


@triton.jit
def to_tf32(value: tl.tensor) -> tl.tensor:
    """Return fp32 `value` rounded to the ten bits of mantissa that a tf32 product reads, ties away from zero.

    The matrix units cut the other bits off instead, which shrinks all products and errs 2.6 times as much.
    """
    bits = value.to(tl.int32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, (bits + 0x1000) & -0x2000, bits).to(tl.float32, bitcast=True)


@triton.jit
def bias_tile(
    g: tl.tensor,
    g_stride: tl.tuple,
    row: tl.tensor,
    draws: tl.tensor,
    S: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Return the bias gradient, fp32 [rows], of the unit that g points at."""
    count = draws * (S.oh * S.ow)
    ROWS: tl.constexpr = TILE.rows
    DEPTH: tl.constexpr = TILE.depth
    acc = tl.zeros((ROWS, DEPTH), dtype=tl.float32)
    for start in range(0, count, TILE.depth):
        place = start + tl.arange(0, TILE.depth)
        g_place = (
            place // (S.oh * S.ow) * g_stride[0]
            + place // S.ow % S.oh * g_stride[2]
            + place % S.ow * g_stride[3]
        )
        mask = (row < S.cout)[:, None] & (place < count)[None, :]
        acc += tl.load(g + (row * g_stride[1])[:, None] + g_place[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    return tl.sum(acc, 1)


@triton.jit
def weight_place(
    weight: tl.tensor, weight_stride: tl.tuple, row: tl.tensor, column: tl.tensor, S: tl.constexpr
) -> tl.tensor:
    """Return where a tile of the unit that `weight` points at lies; columns as in `weight_tile`."""
    tap, channel = column // S.cin, column % S.cin
    offset = channel * weight_stride[2] + tap // S.kw * weight_stride[3] + tap % S.kw * weight_stride[4]
    return weight + (row * weight_stride[1])[:, None] + offset[None, :]


@triton.jit
def put_tile(
    place: tl.tensor, tile: tl.tensor, mask: tl.tensor, square: tl.tensor, MODE: tl.constexpr
) -> None:
    """Store a tile at `place` and the sum of squares of what was stored at `square`, or either."""
    if MODE.store:
        tile = store_value(place, tile, mask, MODE.accumulate)
    if MODE.squares:
        wide = tile.to(tl.float64)
        tl.store(square, tl.sum(tl.ravel(wide * wide), 0))
