"""Layer-by-layer execution of any network whose layers have rules, by swapped forwards and an autograd Function.

During a backward, every trainable layer's forward is replaced by an autograd Function that returns only the input's
gradient and hands the weights' gradient, split by unit, to the store.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from curriculumdp.clipping.parameters import GradientError
from curriculumdp.clipping.rules import Rule, Sink, ruled_layers


class LayerByLayer:
    """The execution of `net` by a rule per layer: the one in `own`, by the layer's id, or else its type's.

    Raises UnruledLayer, naming the layer, if a trainable layer has no rule.
    """

    def __init__(self, net: nn.Module, own: Mapping[int, Rule] | None = None) -> None:
        self._layers = [
            (name, layer, (own or {}).get(id(layer), rule)) for name, layer, rule in ruled_layers(net)
        ]

    @contextmanager
    def swapped(self, sink: Sink, samples: int) -> Iterator[None]:
        """Swap in our forwards for the duration; restore the layers' own whatever happens."""
        before = [layer.__dict__.get("forward") for _, layer, _ in self._layers]
        try:
            for name, layer, rule in self._layers:
                anchor = next(p for p in layer.parameters(recurse=False) if p.requires_grad)
                layer.forward = partial(_forward, name, layer, rule, anchor, sink, samples)
            yield
        finally:
            for (_, layer, _), forward in zip(self._layers, before, strict=True):
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = forward


def _forward(
    name: str, layer: nn.Module, rule: Rule, anchor: nn.Parameter, sink: Sink, samples: int, x: Tensor
) -> Tensor:
    if len(x) != samples:
        draws = samples // sink.units
        raise GradientError(
            f"{name} saw {len(x)} samples, not units × draws = {sink.units} × {draws}: "
            "its gradient cannot be split by unit"
        )
    # The anchor requires grad, so autograd does not skip layers whose input does not (time and class embeddings,
    # the first convolution).
    y: Tensor = _PerUnit.apply(x, anchor, layer, rule, sink)
    return y


class _PerUnit(torch.autograd.Function):
    """A layer whose backward writes its weights' gradients per unit and returns none to autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: nn.Module, rule: Rule, sink: Sink) -> Tensor:
        ctx.layer, ctx.rule, ctx.sink = layer, rule, sink
        y, saved = rule.forward(layer, x)
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        # The saved tensors are already cast: autocast must not cast them again.
        with torch.autocast(grad_out.device.type, enabled=False):
            grad = ctx.rule.backward(
                ctx.layer, ctx.saved_tensors, grad_out, ctx.needs_input_grad[0], ctx.sink
            )
        return grad, None, None, None, None
