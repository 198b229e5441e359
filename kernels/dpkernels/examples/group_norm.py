"""Examples of `group_norm`, both directions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpkernels.examples import Call, Outputs, Shape
from dpkernels.examples.buffers import (
    buffer_after,
    buffer_before,
    norm_parts,
    normal,
    per_unit,
    square,
    storing,
)
from dpkernels.group_norm_triton import group_norm_forward, group_norm_input_and_unit_grads


def inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    shape = (s["units"] * s["draws"], s["channels"], *s["size"])
    x, g = (normal(*shape, dtype=dtype, device=device) for _ in range(2))
    x = x + 3  # a mean far from 0 exposes bad cancellation
    if s["layout"] == "channels_last" and len(s["size"]) == 2:
        x, g = (
            x.contiguous(memory_format=torch.channels_last),
            g.contiguous(memory_format=torch.channels_last),
        )
    by_group = x.double().reshape(len(x), s["groups"], -1)
    mean, rstd = by_group.mean(2), 1 / torch.sqrt(by_group.var(2, correction=0) + 1e-5)
    weight = normal(s["channels"], dtype=torch.float32, device=device)
    statistics = {"mean": mean.float(), "rstd": rstd.float()}
    if "stored" in s:  # as in bf16 training, where the norm returns fp32
        g = g.float()
    return {"x": x, "grad_out": g, "weight": weight, "units": s["units"]} | statistics | storing(s)


def call(
    x: Tensor,
    grad_out: Tensor,
    weight: Tensor,
    units: int,
    mean: Tensor,
    rstd: Tensor,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    channels = x.shape[1]
    whole = buffer_before(units, 2 * channels + 1, x.device, stored, accumulate)
    scale, shift = whole[:, 1 : 1 + channels], whole[:, 1 + channels :]
    squares = norm_parts(x.device, units, mean.shape[1])
    written: Outputs = {}

    def launch() -> None:
        written["x"] = group_norm_input_and_unit_grads(
            x, grad_out, mean, rstd, weight, scale, shift, accumulate, squares
        )

    return Call(launch, lambda: written | {"weight": scale, "bias": shift, "squares": squares.sum(1)})


def truth(
    x: Tensor,
    grad_out: Tensor,
    weight: Tensor,
    units: int,
    mean: Tensor,
    rstd: Tensor,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        # contiguous: torch's own group_norm backward can crash on a CPU in channels_last.
        x_unit = x[samples].double().contiguous().requires_grad_()
        w = weight.double().requires_grad_()
        b = torch.zeros_like(w, requires_grad=True)
        y = F.group_norm(x_unit, mean.shape[1], w, b)
        return torch.autograd.grad(y, (x_unit, w, b), grad_out[samples].double())

    grad_x, *sums = per_unit(units, grads, len(x))
    channels = x.shape[1]
    before = buffer_before(units, 2 * channels + 1, x.device, stored, accumulate)[:, 1:].split(channels, 1)
    w, b = (buffer_after(g, old, accumulate) for g, old in zip(sums, before, strict=True))
    return {"x": grad_x.flatten(0, 1).to(x.dtype), "weight": w, "bias": b, "squares": square(w, b)}


def forward_call(x: Tensor, grad_out: Tensor, weight: Tensor, units: int, mean: Tensor, rstd: Tensor) -> Call:
    bias = weight + 1
    written: Outputs = {}

    def launch() -> None:
        y, mean_out, rstd_out = group_norm_forward(x, weight, bias, mean.shape[1], 1e-5, torch.float32)
        written.update(y=y, mean=mean_out, rstd=rstd_out)

    return Call(launch, lambda: written)


def forward_truth(
    x: Tensor, grad_out: Tensor, weight: Tensor, units: int, mean: Tensor, rstd: Tensor
) -> Outputs:
    y = F.group_norm(x.double().contiguous(), mean.shape[1], weight.double(), (weight + 1).double())
    return {"y": y, "mean": mean, "rstd": rstd}
