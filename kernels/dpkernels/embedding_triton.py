"""Triton kernel of `embedding`: a program owns some rows and columns of one unit's table and loops over its lookups.

Each lookup adds to the row it names, in registers: no two programs write the same element, and the order of summation
is fixed.
"""

import triton
import triton.language as tl
from torch import Tensor

from dpkernels.device import EMBEDDING_COLUMNS, EMBEDDING_ROWS
from dpkernels.grid import store_value


def embedding_grads(
    index: Tensor,
    grad_out: Tensor,
    out: Tensor,
    padding_row: int | None = None,
    accumulate: bool = False,
    squares: Tensor | None = None,
) -> None:
    """Write each unit's gradient of the table into `out`. PRIVATE. Triton only.

    index int64 [N, ...] and grad_out [N, ..., D], any strides, N = B·K with a unit's K draws contiguous; out [B, V, D],
    any strides; `padding_row` gets no gradient, as in torch; `accumulate` adds to what `out` holds. squares,
    if given, is float64 [B, embedding_parts(V, D)] and receives the parts of each unit's squared norm, of the
    values as stored.
    """
    units, rows, width = out.shape
    # The kernel assumes stride 1: a strided view would read another unit's labels.
    values, indices = grad_out.reshape(-1, width), index.reshape(-1).contiguous()
    parts = out if squares is None else squares
    _embedding_kernel[(embedding_parts(rows, width), units)](
        *(indices, values, out, parts, values.stride(), out.stride(), parts.stride(0), len(indices) // units),
        *(rows, width, -1 if padding_row is None else padding_row % rows, accumulate, squares is not None),
        *(EMBEDDING_ROWS, EMBEDDING_COLUMNS),
        num_warps=4,
    )


def embedding_parts(rows: int, width: int) -> int:
    """Return how many parts of a squared norm a launch writes per unit."""
    return triton.cdiv(rows, EMBEDDING_ROWS) * triton.cdiv(width, EMBEDDING_COLUMNS)


@triton.jit
def _embedding_kernel(
    index: tl.tensor,  # int64 [B·L]
    g: tl.tensor,  # [B·L, D]
    out: tl.tensor,  # [B, V, D]
    squares: tl.tensor,  # float64 [B, tiles]
    g_stride: tl.tuple,
    out_stride: tl.tuple,
    squares_stride: tl.tensor,
    lookups: tl.tensor,  # L: lookups per unit
    V: tl.constexpr,
    D: tl.constexpr,
    PADDING: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SQUARES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Program (tile, unit)."""
    ROW_TILES: tl.constexpr = (V + ROWS - 1) // ROWS
    unit = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) % ROW_TILES * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) // ROW_TILES * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for number in range(lookups):
        look_up = unit * lookups + number
        named = tl.load(index + look_up)
        value = tl.load(g + look_up * g_stride[0] + column * g_stride[1], mask=column < D, other=0.0).to(
            tl.float32
        )
        # where, not a product: a non-finite value may spoil its own row only.
        acc += tl.where(((row == named) & (named != PADDING))[:, None], value[None, :], 0.0)
    place = out + unit * out_stride[0] + (row * out_stride[1])[:, None] + (column * out_stride[2])[None, :]
    acc = store_value(place, acc, (row < V)[:, None] & (column < D)[None, :], ACCUMULATE)
    if SQUARES:
        part = tl.sum(tl.sum(acc.to(tl.float64) * acc.to(tl.float64), 1), 0)
        tl.store(squares + unit * squares_stride + tl.program_id(0), part)
