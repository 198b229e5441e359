"""Launches the Triton kernels of `rows_norm`, and sums their results over a unit's draws."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.device import INTERPRETER
from dpkernels.grid import store_value
from dpkernels.rows import Terms
from dpkernels.rows_norm_kernels import _rows_backward_kernel, _rows_forward_kernel
from dpkernels.rows_triton import require_rows

# Elements of a tile; per warp. Measured on an H100 with a sketch of these kernels: 8192 and 8 warps.
ELEMENTS, ELEMENTS_PER_WARP = 8192, 1024
# Programs that keep a large GPU busy; below, samples are cut into slices of whole groups, of at least 64 bytes in bf16.
BUSY, SLICE = 264, 32
# A 1x1 convolution of the sources runs inside the norm's kernels up to this many channels in and out, so that its
# weight stays in the program; and from this many positions a tile on, the least that a product takes.
PRODUCT, LEAST = 128, 16
# Two sources of 32 channels and a sum crash triton 3.9's compiler for sm_90: narrow sources are multiplied apart.
NARROWEST = 1 if INTERPRETER else 64


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
    terms: int = 0  # of the first source, 0 if it is given
    level: bool = False  # whether a constant is added to them
    out: int = 0  # channels of the product with `through`, 0 if there is none
    upcast: bool = False  # for the interpreter, which would multiply bf16 bit patterns as integers


class Tile(NamedTuple):
    """A program's tile: rows are positions, columns are channels, `groups` x `wide`, powers of two."""

    rows: int
    groups: int
    wide: int
    out: int = 16


def norm_act(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    act: bool,
    added: Tensor | None,
    shift: Tensor | None,
    first: Terms | None,
    through: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return what `rows_norm.norm_act` does."""
    terms = (*(() if first is None else first.terms), sources[0], sources[0])[:2]
    require_rows(*sources, *terms)
    shape, tile, grid = _layout(sources, groups, act, added, shift)
    if first is not None:
        shape = shape._replace(terms=len(first.terms), level=first.bias is not None)
    shape, tile = _with_product(shape, tile, through)
    like: dict[str, Any] = {"dtype": sources[0].dtype, "device": sources[0].device}
    y = torch.empty(*sources[0].shape[:3], len(weight), **like)
    product = None if through is None else torch.empty(*y.shape[:3], len(through), **like)
    mean = torch.empty(len(y), groups, device=y.device)
    rstd = torch.empty_like(mean)
    # An unused pointer argument must still be a tensor: another stands in.
    _rows_forward_kernel[grid](
        *(sources[0], sources[-1], *terms, _or(first.bias if first else None, weight)),
        *(_or(added, weight), _or(shift, weight), weight, bias, _or(through, weight), y, _or(product, y)),
        *(mean, rstd, eps, shape, tile),
        num_warps=_warps(tile),
    )
    return y, mean, rstd, product


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
    product: tuple[Tensor, Tensor] | None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return what `rows_norm.norm_act_backward` does."""
    require_rows(*sources, *(tensor for extra in plus for tensor in extra))
    shape, tile, grid = _layout(sources, mean.shape[1], act, added, shift)
    through, grad_product = (weight, grad_out) if product is None else product
    shape, tile = _with_product(shape, tile, None if product is None else through)
    grads = tuple(torch.empty_like(source) for source in sources)
    sums = torch.empty(len(mean), 3, len(weight), device=mean.device)
    plus_a, plus_b = (*plus, ())[:2]
    more_a, more_b = (
        (*extra, source, source)[:2] for extra, source in ((plus_a, sources[0]), (plus_b, sources[-1]))
    )
    _rows_backward_kernel[grid](
        *(sources[0], sources[-1], _or(added, weight), _or(shift, weight), weight, bias),
        *(through.contiguous(), grad_out.contiguous(), grad_product.contiguous(), mean, rstd),
        *(grads[0], grads[-1], *more_a, *more_b, sums, shape, tile, len(plus_a), len(plus_b)),
        num_warps=_warps(tile),
    )
    return grads, sums


def multiplies(sources: Sequence[Tensor], groups: int, through: Tensor) -> bool:
    """Return whether the kernels run the 1x1 convolution `through` of the sources as well."""
    _, tile, (slices, _) = _layout(sources, groups, False, None, None)
    narrow = max(tile.groups * tile.wide, len(through)) <= PRODUCT
    narrow = narrow and min(source.shape[3] for source in sources) >= NARROWEST
    short = sources[0].dtype in (torch.bfloat16, torch.float16)
    return short and narrow and slices == 1 and tile.rows >= LEAST


def _with_product(shape: Shape, tile: Tile, through: Tensor | None) -> tuple[Shape, Tile]:
    if through is None:
        return shape, tile
    out = max(LEAST, triton.next_power_of_2(len(through)))
    return shape._replace(out=len(through), upcast=INTERPRETER), tile._replace(out=out)


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
