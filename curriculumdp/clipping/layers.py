"""The rule of each layer type: its forward, and the gradient of its weights per unit.

A layer type is supported when it has a row in `RULES`; a model with a trainable layer that has none is refused
by name, because a parameter that is missed would be released without a bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpkernels.conv2d import conv2d_bias_grad, conv2d_weight_grad
from dpkernels.embedding import embedding_weight_grad
from dpkernels.group_norm import group_norm_backward
from dpkernels.linear import linear_bias_grad, linear_weight_grad


class UnruledLayer(ValueError):
    """A trainable layer or parameter whose per-unit gradient cannot be computed."""


class Sink(Protocol):
    """Where per-unit gradients go."""

    def segment(self, parameter: nn.Parameter | None) -> tuple[Tensor, bool] | None:
        """(view [B, *shape], whether to add to it) of a trainable parameter; None for others."""


@dataclass(frozen=True)
class Rule:
    """forward(layer, x) -> (y, tensors to save); backward(layer, saved, grad_out, wants_input, sink) -> grad_x."""

    forward: Callable[[Any, Tensor], tuple[Tensor, tuple[Tensor, ...]]]
    backward: Callable[[Any, tuple[Tensor, ...], Tensor, bool, Sink], Tensor | None]
    refuse: Callable[[Any], str | None] = lambda _: None


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _cast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as autocast would pass them to a matrix product."""
    first = tensors[0]
    assert first is not None
    dtype = _autocast_dtype(first)
    return list(tensors) if dtype is None else [t if t is None else t.to(dtype) for t in tensors]


def _conv2d_forward(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    x, weight, bias = _cast(x, layer.weight, layer.bias)
    y = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return y, (x, weight)


def _conv2d_backward(
    layer: nn.Conv2d, saved: tuple[Tensor, ...], grad_out: Tensor, wants_input: bool, sink: Sink
) -> Tensor | None:
    x, weight = saved
    geometry = (layer.stride, layer.padding, layer.dilation)
    if (segment := sink.segment(layer.weight)) is not None:
        conv2d_weight_grad(x, grad_out, segment[0], *geometry, layer.groups, segment[1])
    if (segment := sink.segment(layer.bias)) is not None:
        conv2d_bias_grad(grad_out, *segment)
    if not wants_input:
        return None
    return torch.ops.aten.convolution_backward(
        grad_out, x, weight, None, *geometry, False, (0, 0), layer.groups, (True, False, False)
    )[0]


def _conv2d_refusal(layer: nn.Conv2d) -> str | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return "only zero padding given in pixels has a rule"
    return None


def _linear_forward(layer: nn.Linear, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    x, weight, bias = _cast(x, layer.weight, layer.bias)
    return F.linear(x, weight, bias), (x, weight)


def _linear_backward(
    layer: nn.Linear, saved: tuple[Tensor, ...], grad_out: Tensor, wants_input: bool, sink: Sink
) -> Tensor | None:
    x, weight = saved
    if (segment := sink.segment(layer.weight)) is not None:
        linear_weight_grad(x, grad_out, *segment)
    if (segment := sink.segment(layer.bias)) is not None:
        linear_bias_grad(grad_out, *segment)
    return grad_out.matmul(weight) if wants_input else None


def _group_norm_forward(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    if _autocast_dtype(x) is not None and x.device.type == "cuda":
        x = x.float()  # autocast's own rule for group_norm on CUDA
    x = x.contiguous()  # as the backward reads it
    samples, channels = x.shape[:2]
    positions = x[0, 0].numel()
    y, mean, rstd = torch.native_group_norm(
        x, layer.weight, layer.bias, samples, channels, positions, layer.num_groups, layer.eps
    )
    return y, (x, mean, rstd)


def _group_norm_backward(
    layer: nn.GroupNorm, saved: tuple[Tensor, ...], grad_out: Tensor, wants_input: bool, sink: Sink
) -> Tensor | None:
    x, mean, rstd = saved
    scale, shift = sink.segment(layer.weight), sink.segment(layer.bias)
    again = any(segment is not None and segment[1] for segment in (scale, shift))
    return group_norm_backward(
        x, grad_out, mean, rstd, layer.weight, scale and scale[0], shift and shift[0], again
    )


def _embedding_forward(layer: nn.Embedding, index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return F.embedding(index, layer.weight, layer.padding_idx), (index,)


def _embedding_backward(
    layer: nn.Embedding, saved: tuple[Tensor, ...], grad_out: Tensor, wants_input: bool, sink: Sink
) -> Tensor | None:
    if (segment := sink.segment(layer.weight)) is not None:
        embedding_weight_grad(saved[0], grad_out, segment[0], layer.padding_idx, segment[1])
    return None


def _embedding_refusal(layer: nn.Embedding) -> str | None:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        return "max_norm, scale_grad_by_freq and sparse have no rule: they depend on the whole batch"
    return None


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: Rule(_conv2d_forward, _conv2d_backward, _conv2d_refusal),
    nn.Linear: Rule(_linear_forward, _linear_backward),
    nn.GroupNorm: Rule(_group_norm_forward, _group_norm_backward),
    nn.Embedding: Rule(_embedding_forward, _embedding_backward, _embedding_refusal),
}


def ruled_layers(net: nn.Module) -> list[tuple[str, nn.Module, Rule]]:
    """(name, layer, rule) of every layer of `net` that owns a trainable parameter.

    Raises UnruledLayer, naming the layer, its type and the parameter, where one has no rule.
    """
    layers = []
    for name, layer in net.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise UnruledLayer(
                f"{name} is a {type(layer).__name__}: it mixes the units of a batch, so that no per-unit gradient "
                "exists; use GroupNorm"
            )
        trainable = [key for key, p in layer.named_parameters(recurse=False) if p.requires_grad]
        if not trainable:
            continue
        rule = RULES.get(type(layer))
        where = f"{name or 'the model'} ({type(layer).__name__})"
        if rule is None:
            allowed = ", ".join(kind.__name__ for kind in RULES)
            raise UnruledLayer(
                f"{where} has the trainable parameter {trainable[0]} but no per-unit gradient rule; layers with a "
                f"rule are {allowed}; freeze it or replace it"
            )
        if (why := rule.refuse(layer)) is not None:
            raise UnruledLayer(f"{where}: {why}")
        layers.append((name, layer, rule))
    return layers
