"""Per-unit gradients of a whole network, and their clipped sum."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curriculumdp.clipping.clip import ClipResult, add_clipped_rows
from curriculumdp.clipping.layers import Rule, ruled_layers


class GradientError(ValueError):
    """A backward did not give every unit's gradient of every parameter."""


class Segment(NamedTuple):
    """Where a parameter lies in the flat order of `net.named_parameters()`."""

    name: str
    shape: torch.Size
    offset: int


class PerUnitGradients:
    """The per-unit gradients of a network for microbatches of `units` units with `draws` draws each. PRIVATE."""

    def __init__(self, net: nn.Module, units: int, draws: int, dtype: torch.dtype = torch.float32) -> None:
        self.units, self.draws, self.dtype = units, draws, dtype
        self._layers = ruled_layers(net)
        self.parameters: list[Segment] = []
        self._segments: dict[int, int] = {}
        offset = 0
        for name, parameter in net.named_parameters():
            if not parameter.requires_grad:
                continue
            self._segments[id(parameter)] = len(self.parameters)
            self.parameters.append(Segment(name, parameter.shape, offset))
            offset += parameter.numel()
        self.total = offset
        self._trainable = [p for p in net.parameters() if p.requires_grad]
        device = self._trainable[0].device
        self.grads = torch.empty(units, self.total, dtype=dtype, device=device)
        self._views = [
            self.grads[:, s.offset : s.offset + s.shape.numel()].unflatten(1, s.shape) for s in self.parameters
        ]
        self._written: set[int] = set()

    def segment(self, parameter: nn.Parameter | None) -> tuple[Tensor, bool] | None:
        place = self._segments.get(id(parameter))
        if place is None:
            return None
        again = place in self._written
        self._written.add(place)
        return self._views[place], again

    def backward(self, forward_loss: Callable[[], Tensor]) -> Tensor:
        """Fills `grads` and returns the units' losses, detached [B]."""
        self._written.clear()
        for parameter in self._trainable:
            parameter.grad = None
        with torch.enable_grad(), self._swapped():
            losses = forward_loss()
            if losses.shape != (self.units,):
                raise GradientError(f"the loss has shape {tuple(losses.shape)}; one per unit is needed: {self.units}")
            losses.sum().backward()
        for place, (segment, parameter) in enumerate(zip(self.parameters, self._trainable, strict=True)):
            if parameter.grad is not None:
                parameter.grad = None
                raise GradientError(f"{segment.name} was used outside its layer's forward: its gradient is incomplete")
            if place not in self._written:
                raise GradientError(f"{segment.name} got no gradient: the forward did not use it")
        return losses.detach()

    def add_clipped_grads(self, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
        return add_clipped_rows(self.grads, total, clip_norm, present)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        before = [layer.__dict__.get("forward") for _, layer, _ in self._layers]
        try:
            for name, layer, rule in self._layers:
                layer.forward = partial(self._forward, name, layer, rule)
            yield
        finally:
            for (_, layer, _), forward in zip(self._layers, before, strict=True):
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = forward

    def _forward(self, name: str, layer: nn.Module, rule: Rule, x: Tensor) -> Tensor:
        if len(x) != self.units * self.draws:
            raise GradientError(
                f"{name} saw {len(x)} samples, not units × draws = {self.units} × {self.draws}: "
                "its gradient cannot be told apart by unit"
            )
        anchor = next(p for p in layer.parameters(recurse=False) if p.requires_grad)
        return _PerUnit.apply(x, anchor, layer, rule, self)


class _PerUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: nn.Module, rule: Rule, sink: PerUnitGradients) -> Tensor:
        ctx.layer, ctx.rule, ctx.sink = layer, rule, sink
        y, saved = rule.forward(layer, x)
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_out.device.type, enabled=False):
            grad = ctx.rule.backward(ctx.layer, ctx.saved_tensors, grad_out, ctx.needs_input_grad[0], ctx.sink)
        return grad, None, None, None, None
