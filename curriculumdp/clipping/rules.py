"""The rule of each layer type: its forward, and the per-unit gradient of its weights.

A layer type is supported if it has an entry in `RULES`. A trainable layer without one is refused by name: a parameter
that the engine missed would never learn, and a layer that mixes units has no sensitivity bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curriculumdp.errors import UserError
from dpkernels.accumulate import store
from dpkernels.conv2d import Pair, conv2d_bias_grad, conv2d_weight_grad
from dpkernels.embedding import embedding_weight_grad
from dpkernels.group_norm import group_norm_backward
from dpkernels.linear import linear_bias_grad, linear_weight_grad

Saved = tuple[Tensor, ...]


class UnruledLayer(UserError):
    """A layer or parameter whose per-unit gradient cannot be computed."""


class Sink(Protocol):
    """The destination of per-unit gradients. The rules in torch use `segment` alone, kernels and blocks the rest."""

    units: int

    def segment(self, parameter: Tensor | None) -> tuple[Tensor, bool] | None:
        """Return (view [B, *shape], whether to add to it) for a trainable parameter, None for any other."""

    def conv2d(
        self,
        layer: nn.Conv2d,
        sources: Sequence[Tensor],
        grad_out: Tensor,
        *,
        bias: bool,
        scale: int = 1,
    ) -> None:
        """Take a convolution's operands: its input is the concatenation of `sources`, images [N, C_i, H, W].

        bias: whether the bias' gradient is to be computed as well; scale: how many times the sources are up-sampled
        first, to the nearest.
        """

    def linear(self, layer: nn.Linear, x: Tensor, grad_out: Tensor) -> None:
        """Take a linear layer's operands, x [N, ..., I] and grad_out [N, ..., O]."""

    def projections(self, layers: Sequence[nn.Linear], x: Tensor, grad_out: Tensor) -> None:
        """Take the operands of layers of one size on one input; grad_out [N, T, their outputs side by side]."""

    def channels(self, parameters: Sequence[Tensor], sums: Tensor) -> None:
        """Take per-sample gradients, fp32 or fp64 [N, S, C], of S or fewer parameters [C]."""

    def embedding(self, layer: nn.Embedding, index: Tensor, grad_out: Tensor) -> None:
        """Take an embedding's operands, index int64 [N] and grad_out [N, D]."""


@dataclass(frozen=True)
class Rule:
    """How to run a layer type.

    forward(layer, x) -> (y, tensors to save); backward(layer, saved, grad_out, wants_input, sink) -> grad_x;
    refuse(layer) -> why this particular layer is not supported, or None.
    """

    forward: Callable[[Any, Tensor], tuple[Tensor, Saved]]
    backward: Callable[[Any, Saved, Tensor, bool, Sink], Tensor | None]
    refuse: Callable[[Any], str | None] = lambda layer: None


def _autocast(*tensors: Tensor | None) -> list[Any]:
    """Return the tensors as autocast would pass them to a matrix product."""
    assert tensors[0] is not None
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _conv2d_forward(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Saved]:
    x, weight, bias = _autocast(x, layer.weight, layer.bias)
    y = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return y, (x, weight)


def _conv2d_backward(
    layer: nn.Conv2d, saved: Saved, grad_out: Tensor, wants_input: bool, sink: Sink
) -> Tensor | None:
    x, weight = saved
    stride, padding, dilation = geometry(layer)
    if (target := sink.segment(layer.weight)) is not None:
        conv2d_weight_grad(x, grad_out, target[0], stride, padding, dilation, layer.groups, target[1])
    if (target := sink.segment(layer.bias)) is not None:
        conv2d_bias_grad(grad_out, *target)
    if not wants_input:
        return None
    input_alone = (True, False, False)
    grad: Tensor = torch.ops.aten.convolution_backward(
        grad_out, x, weight, None, stride, padding, dilation, False, (0, 0), layer.groups, input_alone
    )[0]
    return grad


def geometry(layer: nn.Conv2d) -> tuple[Pair, Pair, Pair]:
    """Return a convolution's stride, padding and dilation."""
    padding = layer.padding
    assert not isinstance(padding, str)  # _conv2d_refusal rejects it
    (sh, sw), (ph, pw), (dh, dw) = layer.stride, padding, layer.dilation
    return (sh, sw), (ph, pw), (dh, dw)


def _conv2d_refusal(layer: nn.Conv2d) -> str | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return "only zero padding, given in pixels, is supported"
    return None


def _linear_forward(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Saved]:
    x, weight, bias = _autocast(x, layer.weight, layer.bias)
    return F.linear(x, weight, bias), (x, weight)


def _linear_backward(
    layer: nn.Linear, saved: Saved, grad_out: Tensor, wants_input: bool, sink: Sink
) -> Tensor | None:
    x, weight = saved
    if (target := sink.segment(layer.weight)) is not None:
        linear_weight_grad(x, grad_out, *target)
    if (target := sink.segment(layer.bias)) is not None:
        linear_bias_grad(grad_out, *target)
    return grad_out.matmul(weight) if wants_input else None


def _group_norm_forward(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Saved]:
    if torch.is_autocast_enabled("cuda") and x.is_cuda:
        x = x.float()  # autocast's own rule for group_norm on CUDA
    x = x.contiguous()
    samples, channels, positions = len(x), x.shape[1], x[0, 0].numel()
    y, mean, rstd = torch.native_group_norm(
        x, layer.weight, layer.bias, samples, channels, positions, layer.num_groups, layer.eps
    )
    return y, (x, mean, rstd)


def _group_norm_backward(
    layer: nn.GroupNorm, saved: Saved, grad_out: Tensor, wants_input: bool, sink: Sink
) -> Tensor | None:
    x, mean, rstd = saved
    grad, scale, shift = group_norm_backward(x, grad_out, mean, rstd, layer.weight, sink.units)
    for parameter, value in ((layer.weight, scale), (layer.bias, shift)):
        if (target := sink.segment(parameter)) is not None:
            store(target[0], value, target[1])
    return grad


def _embedding_forward(layer: nn.Embedding, index: Tensor) -> tuple[Tensor, Saved]:
    return F.embedding(index, layer.weight, layer.padding_idx), (index,)


def _embedding_backward(
    layer: nn.Embedding, saved: Saved, grad_out: Tensor, wants_input: bool, sink: Sink
) -> Tensor | None:
    if (target := sink.segment(layer.weight)) is not None:
        embedding_weight_grad(saved[0], grad_out, target[0], layer.padding_idx, target[1])
    return None


def _embedding_refusal(layer: nn.Embedding) -> str | None:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        return "max_norm, scale_grad_by_freq and sparse are not supported: the first two depend on the whole batch"
    return None


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: Rule(_conv2d_forward, _conv2d_backward, _conv2d_refusal),
    nn.Linear: Rule(_linear_forward, _linear_backward),
    nn.GroupNorm: Rule(_group_norm_forward, _group_norm_backward),
    nn.Embedding: Rule(_embedding_forward, _embedding_backward, _embedding_refusal),
}


def ruled_layers(net: nn.Module) -> list[tuple[str, nn.Module, Rule]]:
    """Return (name, layer, rule) for every layer of `net` that owns a trainable parameter.

    Raises UnruledLayer, naming the layer, its type and the parameter, if one has no rule or is a batch norm.
    """
    layers = []
    for name, layer in net.named_modules():
        where = f"{name or 'the model'} ({type(layer).__name__})"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise UnruledLayer(
                f"{where} mixes the units of a batch, so no per-unit gradient exists: use GroupNorm"
            )
        trainable = [key for key, p in layer.named_parameters(recurse=False) if p.requires_grad]
        if not trainable:
            continue
        rule = RULES.get(type(layer))
        if rule is None:
            raise UnruledLayer(
                f"{where} has a trainable parameter, {trainable[0]}, but no rule for its per-unit gradient: "
                f"freeze it or replace it with one of {', '.join(kind.__name__ for kind in RULES)}"
            )
        if (why := rule.refuse(layer)) is not None:
            raise UnruledLayer(f"{where}: {why}")
        layers.append((name, layer, rule))
    return layers
