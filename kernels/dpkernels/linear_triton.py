"""Triton kernels of `linear`: each unit's weight and bias gradient.

A linear layer over T positions is a 1x1 convolution over a T x 1 image and uses the convolution's kernel; the
projections of an attention block that share an input (query, key, value) go in one launch. With one position per draw
(time and class projections) the gradient has rank K: its norm follows from the factors,
‖Σ_k g_k x_kᵀ‖² = Σ_{k,l} (g_k·g_l)(x_k·x_l), and its clipped sum from `add_clipped_linear`, so nothing is stored.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.conv2d_tiles import PLAIN, layer_shape, mode_of, require_indexable, tiles
from dpkernels.conv2d_triton import add_clipped_conv2d, conv2d_grads, unit_program
from dpkernels.device import gemm_tile, precision_of


def linear_grads(
    x: Tensor,
    grad_out: Tensor,
    weight_out: Tensor,
    bias_out: Tensor | None,
    accumulate: bool = False,
    squares: Tensor | None = None,
) -> None:
    """Write each unit's weight and bias gradient in one launch. PRIVATE.

    x [N, ..., I] and grad_out [N, ..., O], any strides, N = B·K with a unit's K draws contiguous; weight_out
    [B, O, I] and bias_out [B, O] or None; the rest as in `conv2d_grads`.
    """
    weight = weight_out[..., None, None]
    conv2d_grads(as_image(x), as_image(grad_out), weight, bias_out, PLAIN, accumulate, squares)


def linear_squares(x: Tensor, grad_out: Tensor, units: int, bias: bool) -> Tensor:
    """Return each unit's squared gradient norm from the factors, float64 [B]: K² products of vectors. PRIVATE.

    For few rows per unit; x and grad_out as in `linear_grads`, but not for tf32 products. The result bounds what
    `add_clipped_linear` sums, not only the exact product: where a unit's rows cancel, its norm is small but the
    rounding of its terms, which grows with M = Σ_k ‖g_k‖‖x_k‖, is not. That rounding is added once it exceeds 2⁻¹⁴ of
    the norm; below, the margin of the grid's AIM covers it. For M of 2¹²⁷ or more the result is infinite: fp32 sums of
    the terms may overflow where the float64 norm does not.
    """
    x_brI, grad_brO = _rows(x.double(), units), _rows(grad_out.double(), units)
    x_gram = x_brI.bmm(x_brI.transpose(1, 2)) + float(bias)
    grad_gram = grad_brO.bmm(grad_brO.transpose(1, 2))
    norm = (x_gram * grad_gram).sum((1, 2)).clamp_(min=0).sqrt_()
    terms = (_diagonal(x_gram) * _diagonal(grad_gram)).sqrt_().sum(1)
    rows, width = x_brI.shape[1], x_brI.shape[2] + grad_brO.shape[2]
    # fp32 sums of `rows` products (matrix units may truncate instead of rounding), and the fp64 sums of both products.
    rounding = terms * ((rows + 4) * 2.0**-22 + math.sqrt((rows**2 + width) * 2.0**-52))
    bound = torch.where(rounding > norm * 2.0**-14, norm + rounding, norm)
    return torch.where(terms < 2.0**127, bound, torch.inf).square_()


def _diagonal(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=1, dim2=2)


def add_clipped_linear(
    x: Tensor, grad_out: Tensor, scale: Tensor, weight_total: Tensor, bias_total: Tensor | None
) -> None:
    """Add Σ_b rint(scale[b] · gradient of unit b) to int64 sums [O, I] and [O]. PRIVATE. Triton only.

    Arguments as in `add_clipped_conv2d`.
    """
    add_clipped_conv2d(
        as_image(x), as_image(grad_out), scale, weight_total[..., None, None], bias_total, PLAIN
    )


def shared_input_grads(
    x: Tensor,
    grads: Sequence[Tensor],
    weight_outs: Sequence[Tensor],
    bias_outs: Sequence[Tensor] | None,
    squares: Tensor,
) -> None:
    """Write the gradients of three layers of one size that share the input x, in one launch. PRIVATE. Triton only.

    Each as in `linear_grads`, all three with the same strides; squares float64 [3, B, parts of one layer]. Raises
    ValueError unless there are three of each, with the same strides.
    """
    for name, three in (
        ("grads", grads),
        ("weight_outs", weight_outs),
        ("bias_outs", bias_outs or weight_outs),
    ):
        if len(three) != 3 or len({tensor.stride() for tensor in three}) != 1:
            raise ValueError(f"{name} must be three tensors with the same strides")
    x_image, images = as_image(x), [as_image(grad) for grad in grads]
    require_indexable(x_image, images[0], len(weight_outs[0]))
    shape = layer_shape(x_image, images[0], (*weight_outs[0].shape[1:], 1, 1), bias_outs is not None, PLAIN)
    tile = gemm_tile(precision_of(x.dtype), shape[:4])
    weight_stride = (*weight_outs[0].stride(), 0, 0)
    # A unit's programs run side by side, so that its input is read from memory once.
    _shared_kernel[(tiles(tile, shape[:4], shape.bias), 3, len(weight_outs[0]))](
        *(x_image, tuple(images), tuple(weight_outs), tuple(bias_outs or weight_outs), squares),
        *(x_image.stride(), images[0].stride(), weight_stride),
        *(weight_outs[0].stride()[:2] if bias_outs is None else bias_outs[0].stride(), squares.stride()),
        *(len(x) // len(weight_outs[0]), shape, tile, mode_of(x.dtype, squares=True)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def _rows(tensor: Tensor, units: int) -> Tensor:
    """Return [N, ..., F] as [B, rows per unit, F]."""
    return tensor.reshape(units, -1, tensor.shape[-1])


def as_image(tensor: Tensor) -> Tensor:
    """Return [N, ..., F] as an image [N, F, T, 1]; a view if at most one axis lies between N and F."""
    rows = tensor[:, None] if tensor.dim() == 2 else tensor.flatten(1, -2)
    return rows.transpose(1, 2)[..., None]


@triton.jit
def _shared_kernel(
    x: tl.tensor,  # [N, I, T, 1]
    grads: tl.tuple,  # three [N, O, T, 1] of one layout
    weights: tl.tuple,  # three [B, O, I]
    biases: tl.tuple,  # three [B, O]
    squares: tl.tensor,  # float64 [3, B, tiles]
    x_stride: tl.tuple,
    g_stride: tl.tuple,
    weight_stride: tl.tuple,
    bias_stride: tl.tuple,
    squares_stride: tl.tuple,
    draws: tl.tensor,
    S: tl.constexpr,
    TILE: tl.constexpr,
    MODE: tl.constexpr,
) -> None:
    """Program (tile, layer, unit). Three branches: selecting pointers would lose their alignment."""
    unit = tl.program_id(2)
    strides = (x_stride, g_stride, weight_stride, bias_stride, squares_stride[1])
    if tl.program_id(1) == 0:
        unit_program(x, grads[0], weights[0], biases[0], squares, strides, unit, draws, S, TILE, MODE)
    elif tl.program_id(1) == 1:
        parts = squares + squares_stride[0]
        unit_program(x, grads[1], weights[1], biases[1], parts, strides, unit, draws, S, TILE, MODE)
    else:
        parts = squares + 2 * squares_stride[0]
        unit_program(x, grads[2], weights[2], biases[2], parts, strides, unit, draws, S, TILE, MODE)
