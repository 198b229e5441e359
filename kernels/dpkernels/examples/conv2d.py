"""Examples of `conv2d` and of its recomputed sum."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpkernels.conv2d_triton import Geometry, add_clipped_conv2d, conv2d_grads, conv2d_parts, conv2d_squares
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


def inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    k, size = s["kernel"], s["size"]
    scale = s.get("scale", 1)
    geometry = Geometry((s["stride"],) * 2, (s["padding"],) * 2, (s.get("dilation", 1),) * 2, scale)
    out_size = [
        (scale * n + 2 * s["padding"] - geometry.dilation[0] * (k - 1) - 1) // s["stride"] + 1 for n in size
    ]
    x = normal(s["units"] * s["draws"], s["cin"], *size, dtype=dtype, device=device)
    g = normal(s["units"] * s["draws"], s["cout"], *out_size, dtype=dtype, device=device)
    if s["layout"] == "channels_last":
        x, g = (
            x.contiguous(memory_format=torch.channels_last),
            g.contiguous(memory_format=torch.channels_last),
        )
    if s["layout"] == "view":  # every other column of a wider tensor
        x = torch.cat((x, x), 3)[..., ::2] if size[1] > 1 else x
    weight = (s["cout"], s["cin"], k, k)
    inputs = {"x": x, "grad_out": g, "weight": weight, "geometry": geometry, "units": s["units"]}
    return inputs | storing(s)


def call(
    x: Tensor,
    grad_out: Tensor,
    weight: tuple[int, ...],
    geometry: Geometry,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    weight_out, bias_out = weight_and_bias(units, weight, x.device, stored, accumulate)
    squares = norm_parts(x.device, units, conv2d_parts(weight, True, x.dtype))
    return Call(
        lambda: conv2d_grads(x, grad_out, weight_out, bias_out, geometry, accumulate, squares),
        lambda: {"weight": weight_out, "bias": bias_out, "squares": squares.sum(1)},
    )


def truth(
    x: Tensor,
    grad_out: Tensor,
    weight: tuple[int, ...],
    geometry: Geometry,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        w = torch.zeros(weight, dtype=torch.float64, device=x.device, requires_grad=True)
        b = torch.zeros(weight[0], dtype=torch.float64, device=x.device, requires_grad=True)
        wide = F.interpolate(x[samples].double(), scale_factor=geometry.scale, mode="nearest")
        y = F.conv2d(wide, w, b, *geometry[:3])
        return torch.autograd.grad(y, (w, b), grad_out[samples].double())

    before = weight_and_bias(units, weight, x.device, stored, accumulate)
    w, b = (
        buffer_after(g, old, accumulate)
        for g, old in zip(per_unit(units, grads, len(x)), before, strict=True)
    )
    return {"weight": w, "bias": b, "squares": square(w, b)}


def recompute_call(
    x: Tensor, grad_out: Tensor, weight: tuple[int, ...], geometry: Geometry, units: int
) -> Call:
    squares = norm_parts(x.device, units, conv2d_parts(weight, True, x.dtype, recompute=True))
    total = torch.zeros(torch.Size(weight).numel() + weight[0], dtype=torch.int64, device=x.device)
    weight_total, bias_total = total[: -weight[0]].view(weight), total[-weight[0] :]
    scale = scale_to_grid(units, x.device)

    def launch() -> None:
        conv2d_squares(x, grad_out, weight, True, geometry, squares)
        add_clipped_conv2d(x, grad_out, scale, weight_total, bias_total, geometry)

    return Call(launch, lambda: {"weight": weight_total, "bias": bias_total, "squares": squares.sum(1)})


def recompute_truth(**inputs: Any) -> Outputs:
    stored = truth(**inputs)
    sums = summed(scale_to_grid(inputs["units"], inputs["x"].device), stored["weight"], stored["bias"])
    return {"weight": sums[0], "bias": sums[1], "squares": stored["squares"]}
