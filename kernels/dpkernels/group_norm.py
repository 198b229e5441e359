"""GroupNorm's backward with per-unit gradients of scale and shift (Wu and He 2018), y = x̂·w + b.

∂L/∂w of unit b = Σ over its draws and positions of g·x̂, ∂L/∂b = Σ g, per channel.
"""

import torch
from torch import Tensor


def group_norm_backward(
    x: Tensor, grad_out: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, units: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input's gradient, shaped as x, and per-unit gradients of scale and shift, [B, C] each. PRIVATE.

    x and grad_out [N, C, ...] (2 to 4 dimensions, any strides), N = B·K with a unit's K draws contiguous; mean
    and rstd [N, groups], as the forward returned them; weight [C], None for ones.
    """
    samples, channels = x.shape[:2]
    # The library sums the gradients of scale and shift over samples. Passed as ONE sample of N·C channels, there is
    # nothing to sum, so the ordinary backward returns them per sample at no extra cost.
    grad_x, scale, shift = torch.ops.aten.native_group_norm_backward(
        grad_out.contiguous(),
        x.contiguous(),
        mean.reshape(1, -1),
        rstd.reshape(1, -1),
        (x.new_ones(channels, dtype=mean.dtype) if weight is None else weight).repeat(samples),
        1,
        samples * channels,
        x[0, 0].numel(),
        mean.numel(),
        (True, True, True),
    )
    by_unit = (units, -1, channels)
    return grad_x.view(x.shape), scale.view(by_unit).sum(1), shift.view(by_unit).sum(1)
