"""Examples of `clip_sum`: the clipped sum and the norms of stored gradients."""

from typing import Any

import torch
from torch import Tensor

from dpkernels.clip_sum_triton import add_scaled_rows, squared_row_norms
from dpkernels.examples import Call, Outputs, Shape
from dpkernels.examples.buffers import norm_parts, normal, scale_to_grid, square


def inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    grads = normal(s["units"], s["count"], dtype=dtype, device=device)
    return {"grads": grads, "scale": scale_to_grid(s["units"], grads.device)}


def call(grads: Tensor, scale: Tensor) -> Call:
    total = torch.arange(grads.shape[1], device=grads.device)
    squares = norm_parts(grads.device, len(grads))

    def launch() -> None:
        add_scaled_rows(grads, scale, total)
        squares.copy_(squared_row_norms(grads))

    return Call(launch, lambda: {"total": total, "squares": squares})


def truth(grads: Tensor, scale: Tensor) -> Outputs:
    wide = grads.float() * scale[:, None]
    total = torch.arange(grads.shape[1], device=grads.device) + wide.round().long().sum(0)
    return {"total": total, "squares": square(grads)}
