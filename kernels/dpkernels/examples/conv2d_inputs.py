"""Convolutions of a concatenation and of an up-sampled input: calls, and their rows of the catalogue."""

from typing import Any

import torch
from torch import Tensor

from dpkernels.conv2d_triton import Geometry, conv2d_grads_of_two, conv2d_parts
from dpkernels.examples import Call, Shape
from dpkernels.examples.buffers import norm_parts, weight_and_bias
from dpkernels.examples.conv2d import call, inputs, truth


def two_call(
    x: Tensor,
    grad_out: Tensor,
    weight: tuple[int, ...],
    geometry: Geometry,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    """The same convolution on two inputs: the last channels of x, at least half of them, are the second's."""
    weight_out, bias_out = weight_and_bias(units, weight, x.device, stored, accumulate)
    widths = [weight[1] // 2, weight[1] - weight[1] // 2]
    form = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    sources = [part.contiguous(memory_format=form) for part in x.split(widths, 1)]
    parts = weight_out.split(widths, 2)
    squares = [
        norm_parts(x.device, units, conv2d_parts((weight[0], width, *weight[2:]), number == 0, x.dtype))
        for number, width in enumerate(widths)
    ]
    return Call(
        lambda: conv2d_grads_of_two(sources, grad_out, parts, bias_out, geometry, accumulate, squares),
        lambda: {"weight": weight_out, "bias": bias_out, "squares": torch.cat(squares, 1).sum(1)},
    )


def _conv(channels: tuple[int, int], size: tuple[int, int], units: int, draws: int, **more: Any) -> Shape:
    plain = {"kernel": 3, "stride": 1, "padding": 1, "layout": "channels_last", "scale": 1}
    sizes = {"cin": channels[0], "cout": channels[1], "size": size, "units": units, "draws": draws}
    return sizes | plain | more


POINTWISE = {"kernel": 1, "padding": 0}
CHOICES: dict[str, tuple[Any, ...]] = {
    "units": (1, 3),
    "draws": (1, 2),
    "cin": (2, 3, 16),
    "cout": (1, 66),
    "size": ((3, 3), (2, 5)),
    "kernel": (3,),
    "stride": (1,),
    "padding": (1,),
    "layout": ("contiguous", "channels_last"),
    "scale": (1, 2),
}
ROWS: tuple[dict[str, Any], ...] = (
    {
        "name": "conv2d_two_sources",
        "inputs": inputs,
        "call": two_call,
        "reference": truth,
        "shapes": (
            _conv((5, 7), (6, 5), 2, 2, layout="contiguous", **POINTWISE),
            _conv((8, 20), (4, 4), 3, 1),
        ),
        "choices": CHOICES,
        "main": (
            _conv((128, 64), (28, 28), 64, 8, **POINTWISE),
            _conv((128, 128), (16, 16), 64, 8, **POINTWISE),
        ),
    },
    {
        "name": "conv2d_upsampled",
        "inputs": inputs,
        "call": call,
        "reference": truth,
        "shapes": (
            _conv((8, 20), (3, 3), 3, 1, scale=2),
            _conv((3, 66), (2, 5), 1, 2, scale=3),
        ),
        "choices": CHOICES | {"scale": (2,)},
        "main": (_conv((64, 64), (14, 14), 64, 8, scale=2), _conv((32, 32), (16, 16), 64, 8, scale=2)),
    },
)
