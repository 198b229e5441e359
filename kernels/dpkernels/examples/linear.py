"""Examples of `linear`, of its sum from factors and of three layers on one input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpkernels.conv2d_triton import conv2d_parts
from dpkernels.examples import Call, Outputs, Shape
from dpkernels.examples.buffers import (
    buffer_after,
    norm_parts,
    normal,
    per_unit,
    scale_to_grid,
    square,
    storing,
    summed,
    weight_and_bias,
)
from dpkernels.linear_triton import add_clipped_linear, linear_grads, linear_squares, shared_input_grads


def inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    between = () if s["positions"] is None else (s["positions"],)
    x = normal(s["units"] * s["draws"], *between, s["cin"], dtype=dtype, device=device)
    g = normal(s["units"] * s["draws"], *between, s["cout"], dtype=dtype, device=device)
    if s["layout"] == "transposed" and between:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    return {"x": x, "grad_out": g, "units": s["units"]} | storing(s)


def call(
    x: Tensor,
    grad_out: Tensor,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    weight = (grad_out.shape[-1], x.shape[-1], 1, 1)
    image_out, bias_out = weight_and_bias(units, weight, x.device, stored, accumulate)
    weight_out = image_out[..., 0, 0]
    squares = norm_parts(x.device, units, conv2d_parts(weight, True, x.dtype))
    return Call(
        lambda: linear_grads(x, grad_out, weight_out, bias_out, accumulate, squares),
        lambda: {"weight": weight_out, "bias": bias_out, "squares": squares.sum(1)},
    )


def truth(
    x: Tensor,
    grad_out: Tensor,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        w = torch.zeros(
            grad_out.shape[-1], x.shape[-1], dtype=torch.float64, device=x.device, requires_grad=True
        )
        b = torch.zeros(grad_out.shape[-1], dtype=torch.float64, device=x.device, requires_grad=True)
        return torch.autograd.grad(F.linear(x[samples].double(), w, b), (w, b), grad_out[samples].double())

    weight = (grad_out.shape[-1], x.shape[-1])
    before = weight_and_bias(units, weight, x.device, stored, accumulate)
    w, b = (
        buffer_after(g, old, accumulate)
        for g, old in zip(per_unit(units, grads, len(x)), before, strict=True)
    )
    return {"weight": w, "bias": b, "squares": square(w, b)}


def recompute_call(x: Tensor, grad_out: Tensor, units: int) -> Call:
    weight_total = torch.zeros(grad_out.shape[-1], x.shape[-1], dtype=torch.int64, device=x.device)
    bias_total = torch.zeros(grad_out.shape[-1], dtype=torch.int64, device=x.device)
    squares, scale = norm_parts(x.device, units), scale_to_grid(units, x.device)

    def launch() -> None:
        squares.copy_(linear_squares(x, grad_out, units, True))
        add_clipped_linear(x, grad_out, scale, weight_total, bias_total)

    return Call(launch, lambda: {"weight": weight_total, "bias": bias_total, "squares": squares})


def recompute_truth(x: Tensor, grad_out: Tensor, units: int) -> Outputs:
    stored = truth(x, grad_out, units)
    sums = summed(scale_to_grid(units, x.device), stored["weight"], stored["bias"])
    return {"weight": sums[0], "bias": sums[1], "squares": stored["squares"]}


def shared_call(
    x: Tensor,
    grad_out: Tensor,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,  # unused: no layer that is used twice takes this kernel
) -> Call:
    size = (grad_out.shape[-1], x.shape[-1], 1, 1)
    q, k, v = (weight_and_bias(units, size, x.device, stored, False) for _ in range(3))
    squares = norm_parts(x.device, 3, units, conv2d_parts(size, True, x.dtype))
    weights = (q[0][..., 0, 0], k[0][..., 0, 0], v[0][..., 0, 0])
    biases, grads = (q[1], k[1], v[1]), _three(grad_out)

    def outputs() -> Outputs:
        joined = {"weight": torch.cat(weights, 1), "bias": torch.cat(biases, 1)}
        return joined | {"squares": squares.sum((0, 2))}

    return Call(lambda: shared_input_grads(x, grads, weights, biases, squares), outputs)


def _three(grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return output gradients for query, key and value."""
    return grad_out, grad_out.flip(0), grad_out.neg()


def shared_truth(
    x: Tensor,
    grad_out: Tensor,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    truths = [truth(x, grad, units, stored) for grad in _three(grad_out)]
    weight, bias = (torch.cat([truth[name] for truth in truths], 1) for name in ("weight", "bias"))
    return {"weight": weight, "bias": bias, "squares": square(weight, bias)}
