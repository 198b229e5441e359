"""The rules of layers on the Triton kernels: what `rules` computes in torch."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curriculumdp.clipping.rules import RULES, Rule, Saved, geometry, ruled_layers
from dpkernels.group_norm_triton import group_norm_forward, group_norm_input_and_unit_grads


def kernel_rules(net: nn.Module, *, channels_last: bool) -> dict[str, tuple[nn.Module, Rule]]:
    """Return (layer, rule) by name for the layers of `net` that the kernels cover: neither grouped nor partly frozen.

    channels_last: convolutions return that memory format whatever their input has.
    """
    rules = KERNEL_RULES | {
        nn.Conv2d: replace(KERNEL_RULES[nn.Conv2d], forward=partial(_convolve, channels_last))
    }
    return {
        name: (layer, rules[type(layer)])
        for name, layer, _ in ruled_layers(net)
        if type(layer) in rules
        and getattr(layer, "groups", 1) == 1
        and all(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    }


def _autocast(tensor: Tensor) -> Tensor:
    """Return the tensor as autocast would pass it to a matrix product."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _convolve(channels_last: bool, layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Saved]:
    """Run the convolution. A one-channel image has both layouts, so only the weight can request channels_last."""
    x, weight = _autocast(x), _autocast(layer.weight)
    if channels_last:
        empty = torch.empty_like(weight, memory_format=torch.channels_last)
        weight = empty.copy_(weight)
    bias = None if layer.bias is None else _autocast(layer.bias)
    y = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
    return y, (x, weight)


def _conv2d_backward(
    layer: nn.Conv2d, saved: Saved, grad_out: Tensor, wants_input: bool, sink: Any
) -> Tensor | None:
    x, weight = saved
    sink.conv2d(layer, (x,), grad_out, bias=True)
    if not wants_input:
        return None
    return torch.ops.aten.convolution_backward(
        grad_out, x, weight, None, *geometry(layer), False, (0, 0), layer.groups, (True, False, False)
    )[0]


def _linear_backward(
    layer: nn.Linear, saved: Saved, grad_out: Tensor, wants_input: bool, sink: Any
) -> Tensor | None:
    x, weight = saved
    sink.linear(layer, x, grad_out)
    return grad_out.matmul(weight) if wants_input else None


def _group_norm_forward(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Saved]:
    # Autocast returns the norm's output in fp32; the kernel does so without an fp32 copy of the input.
    dtype = torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype
    y, mean, rstd = group_norm_forward(x, layer.weight, layer.bias, layer.num_groups, layer.eps, dtype)
    return y, (x, mean, rstd)


def _group_norm_backward(
    layer: nn.GroupNorm, saved: Saved, grad_out: Tensor, wants_input: bool, sink: Any
) -> Tensor | None:
    x, mean, rstd = saved
    (scale, again), (shift, _) = sink.segment(layer.weight), sink.segment(layer.bias)
    squares = sink.parts(id(layer), mean.shape[1])
    return group_norm_input_and_unit_grads(
        x, grad_out, mean, rstd, layer.weight, scale, shift, again, squares
    )


def _embedding_backward(
    layer: nn.Embedding, saved: Saved, grad_out: Tensor, wants_input: bool, sink: Any
) -> Tensor | None:
    sink.embedding(layer, saved[0], grad_out)
    return None


KERNEL_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: replace(RULES[nn.Conv2d], backward=_conv2d_backward),
    nn.Linear: replace(RULES[nn.Linear], backward=_linear_backward),
    nn.GroupNorm: Rule(_group_norm_forward, _group_norm_backward),
    nn.Embedding: replace(RULES[nn.Embedding], backward=_embedding_backward),
}
