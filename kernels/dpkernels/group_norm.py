"""Per-unit gradients of GroupNorm's scale and shift (Wu and He 2018), y = x̂·w + b.

∂L/∂w of unit b = Σ over its draws and positions of g·x̂, ∂L/∂b = Σ g, per channel.
"""

import torch
from torch import Tensor

from dpkernels.accumulate import store, widen


def group_norm_grads(
    x: Tensor,
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    accumulate: bool = False,
) -> None:
    """Writes each unit's gradients of scale and shift. PRIVATE.

    x and grad_out [N, C, ...] (2 to 4 dimensions, any strides), N = B·K with a unit's K draws contiguous; mean
    and rstd [N, groups], as the forward returned them; weight_out and bias_out [B, C] or None; `accumulate`
    adds to what they hold.
    """
    samples, channels = x.shape[:2]
    groups = mean.shape[1]
    grad = widen(grad_out).reshape(samples, channels, -1)
    shift = grad.sum(2)
    if weight_out is not None:
        moment = (grad * widen(x).reshape(samples, channels, -1)).sum(2)
        wide = channels // groups
        centre = widen(mean).repeat_interleave(wide, 1)
        scale = (moment - centre * shift) * widen(rstd).repeat_interleave(wide, 1)
        store(weight_out, scale.view(len(weight_out), -1, channels).sum(1), accumulate)
    if bias_out is not None:
        store(bias_out, shift.view(len(bias_out), -1, channels).sum(1), accumulate)
