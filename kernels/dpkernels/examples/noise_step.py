"""Examples of `noise_step`."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dpkernels.chacha import key_words
from dpkernels.examples import Call, Outputs, Shape
from dpkernels.noise_step import gaussian_reference, noise_step, noise_step_reference

BUFFERS = ("weights", "exp_avg", "exp_avg_sq", "ema")


def inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    buffers = {name: torch.rand(s["count"], device=device) for name in BUFFERS}
    total = torch.randint(-(2**36), 2**36, (s["count"],), device=device)
    return {"total": total, "buffers": buffers, "step": s["step"]}


def call(total: Tensor, buffers: dict[str, Tensor], step: int) -> Call:
    total, new = _copies(total, buffers)
    state, key = SimpleNamespace(**new), bytes(range(32))
    return Call(
        lambda: noise_step(total, key, 1.5, 0.7, 3.0, state, step, 1e-3, 0.99),
        lambda: new | {"total": total},
    )


def truth(total: Tensor, buffers: dict[str, Tensor], step: int) -> Outputs:
    total, new = _copies(total, buffers)
    noise = gaussian_reference(key_words(bytes(range(32)), total.device), len(total))
    to_gradient = 0.7 / 2.0**36 / 3.0
    noise_step_reference(total, noise, 1.5, to_gradient, SimpleNamespace(**new), step, 1e-3, 0.99)
    return new | {"total": total}


def _copies(total: Tensor, buffers: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return total.clone(), {name: buffer.clone() for name, buffer in buffers.items()}
