"""What the families' examples share: operands, buffers before and after a launch, expected sums."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpkernels.examples import Shape


def per_unit(units: int, grads: Callable[[slice], tuple[Tensor, ...]], samples: int) -> tuple[Tensor, ...]:
    """Stack what `grads` returns for each unit's samples."""
    draws = samples // units
    parts = [grads(slice(unit * draws, (unit + 1) * draws)) for unit in range(units)]
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def summed(scale: Tensor, *grads: Tensor) -> list[Tensor]:
    """Return Σ_b rint(scale[b]·grads[b]) of each tensor, int64; units of scale 0 are left out."""
    keep = scale != 0
    return [
        (g[keep] * scale[keep].double().view(-1, *[1] * (g.dim() - 1))).round().sum(0).long() for g in grads
    ]


def square(*grads: Tensor) -> Tensor:
    return sum((g.double().flatten(1).square().sum(1) for g in grads), torch.tensor(0.0))


def normal(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def storing(s: Shape) -> dict[str, Any]:
    """Return how gradients are stored, if the shape says so: the dtype, and whether they are added to what is there."""
    return {"stored": getattr(torch, s["stored"]), "accumulate": s["accumulate"]} if "stored" in s else {}


def buffer_before(
    units: int, width: int, device: torch.device, stored: torch.dtype, accumulate: bool
) -> Tensor:
    """Return a gradient buffer [B, width] before the launch: values to add to, or NaN that must be overwritten."""
    if not accumulate:
        return torch.full((units, width), torch.nan, dtype=stored, device=device)
    return torch.linspace(-2, 2, units * width, device=device).view(units, width).to(stored)


def buffer_after(grads: Tensor, before: Tensor, accumulate: bool) -> Tensor:
    """Return what the buffer holds afterwards, given fp64 `grads`: rounded once if it is bf16."""
    result = grads + before.double() if accumulate else grads
    return result.to(before.dtype) if before.dtype == torch.bfloat16 else result


def weight_and_bias(
    units: int, weight: tuple[int, ...], device: torch.device, stored: torch.dtype, accumulate: bool
) -> tuple[Tensor, Tensor]:
    """Return (weight, bias), views of one buffer with odd offsets and strides, like segments of G."""
    size = torch.Size(weight).numel()
    whole = buffer_before(units, size + weight[0] + 3, device, stored, accumulate)
    return whole[:, 3 : 3 + size].unflatten(1, weight), whole[:, 3 + size :]


def norm_parts(device: torch.device, *shape: int) -> Tensor:
    """Return a buffer for the parts of squared norms."""
    return torch.full(shape, torch.nan, dtype=torch.float64, device=device)


def scale_to_grid(units: int, device: torch.device) -> Tensor:
    """Return factors to the grid, fp32 [B]; the second unit's is 0, so it adds nothing."""
    scale = 2.0**30 / torch.arange(1, units + 1, device=device)
    return torch.where(torch.arange(units, device=device) == 1, 0.0, scale)
