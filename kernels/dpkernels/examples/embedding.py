"""Examples of `embedding`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpkernels.embedding_triton import embedding_grads, embedding_parts
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


def inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    pairs = torch.randint(s["rows"], (s["units"] * s["draws"], 2), device=device)
    index = pairs[:, 1]  # a strided view, as a caller's may be
    grad = normal(len(index), s["width"], dtype=dtype, device=device)
    inputs = {
        "index": index,
        "grad_out": grad,
        "rows": s["rows"],
        "padding": s["padding"],
        "units": s["units"],
    }
    return inputs | storing(s)


def call(
    index: Tensor,
    grad_out: Tensor,
    rows: int,
    padding: int | None,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    width = grad_out.shape[1]
    out = buffer_before(units, rows * width + 1, grad_out.device, stored, accumulate)[:, 1:]
    out = out.unflatten(1, (rows, width))
    squares = norm_parts(grad_out.device, units, embedding_parts(rows, width))
    return Call(
        lambda: embedding_grads(index, grad_out, out, padding, accumulate, squares),
        lambda: {"weight": out, "squares": squares.sum(1)},
    )


def truth(
    index: Tensor,
    grad_out: Tensor,
    rows: int,
    padding: int | None,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        w = torch.zeros(
            rows, grad_out.shape[1], dtype=torch.float64, device=grad_out.device, requires_grad=True
        )
        return torch.autograd.grad(F.embedding(index[samples], w, padding), (w,), grad_out[samples].double())

    (w,) = per_unit(units, grads, len(index))
    before = buffer_before(units, rows * grad_out.shape[1] + 1, grad_out.device, stored, accumulate)[:, 1:]
    w = buffer_after(w, before.unflatten(1, w.shape[1:]), accumulate)
    return {"weight": w, "squares": square(w)}
