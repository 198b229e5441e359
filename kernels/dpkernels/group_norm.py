"""GroupNorm's backward with per-unit gradients of its scale and shift (Wu and He 2018), y = x̂·w + b.

∂L/∂w of unit b = Σ over its draws and positions of g·x̂, ∂L/∂b = Σ g, per channel.
"""

import torch
from torch import Tensor

from dpkernels.accumulate import store


def group_norm_backward(
    x: Tensor,
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    accumulate: bool = False,
) -> Tensor:
    """Returns the input's gradient and writes each unit's gradients of scale and shift. PRIVATE.

    x and grad_out [N, C, ...] (2 to 4 dimensions, any strides), N = B·K with a unit's K draws contiguous; mean
    and rstd [N, groups], as the forward returned them; weight [C]; weight_out and bias_out [B, C] or None;
    `accumulate` adds to what they hold.
    """
    samples, channels = x.shape[:2]
    # The library sums scale and shift over samples. Seen as one sample of N·C channels there is nothing to sum
    # over, so that the ordinary backward, at the ordinary price, gives them by sample.
    grad_x, scale, shift = torch.ops.aten.native_group_norm_backward(
        grad_out.contiguous().view(1, samples * channels, -1),
        x.contiguous().view(1, samples * channels, -1),
        mean.view(1, -1),
        rstd.view(1, -1),
        weight.repeat(samples),
        1,
        samples * channels,
        x[0, 0].numel(),
        mean.numel(),
        (True, True, True),
    )
    for out, value in ((weight_out, scale), (bias_out, shift)):
        if out is not None:
            store(out, value.view(len(out), -1, channels).sum(1), accumulate)
    return grad_x.view(x.shape)
