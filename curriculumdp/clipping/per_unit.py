"""Per-unit gradients of a network and their clipped sum: the engine of DP-SGD (Abadi et al. 2016).

During a backward, every trainable layer's forward is replaced by an autograd Function that returns only the input's
gradient and writes the weights' gradient, split by unit, into one buffer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curriculumdp.clipping.clip import ClipResult, add_clipped_rows
from curriculumdp.clipping.rules import Rule, ruled_layers
from curriculumdp.errors import UserError


class GradientError(UserError):
    """A backward did not produce every unit's gradient of every parameter, or was used twice."""


class Segment(NamedTuple):
    """A parameter's position in the flat order of `net.named_parameters()`."""

    name: str
    shape: torch.Size
    offset: int


class PerUnitGradients:
    """Per-unit gradients of a network, for microbatches of `units` units with `draws` draws each. PRIVATE.

    The network sees N = units·draws samples, a unit's draws contiguous, and no operation in it may mix samples.
    `grads` [units, total] holds each unit's gradient in the flat order of `parameters`, the trainable ones. Raises
    UnruledLayer, naming the layer, if a trainable layer has no rule, and GradientError if nothing is trainable.
    """

    def __init__(self, net: nn.Module, units: int, draws: int, dtype: torch.dtype = torch.float32) -> None:
        self.units, self.draws = units, draws
        self._layers = ruled_layers(net)
        trainable = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        if not trainable:
            raise GradientError("the model has no trainable parameter")
        self._weights = [p for _, p in trainable]
        self.parameters: list[Segment] = []
        self.total = 0
        for name, parameter in trainable:
            self.parameters.append(Segment(name, parameter.shape, self.total))
            self.total += parameter.numel()
        device = self._weights[0].device
        if device.type == "cpu":
            _keep_freed_memory()
        self.grads = torch.zeros(units, self.total, dtype=dtype, device=device)
        self._index_of = {id(p): index for index, p in enumerate(self._weights)}
        self._views = [
            self.grads[:, offset : offset + shape.numel()].unflatten(1, shape)
            for _, shape, offset in self.parameters
        ]
        self._written: set[int] = set()
        self._fresh = False

    def backward(self, forward_loss: Callable[[], Tensor]) -> Tensor:
        """Fill `grads` with each unit's gradient and return the units' losses [units], detached. PRIVATE.

        `forward_loss` runs the network on units·draws samples and returns one loss per unit, averaged over its draws.
        Raises GradientError if it does not, or, naming the parameter, if a gradient is missing or incomplete.
        """
        self._written.clear()
        self._fresh = False
        for weight in self._weights:
            weight.grad = None
        with torch.enable_grad(), self._swapped():
            losses = forward_loss()
            if losses.shape != (self.units,):
                raise GradientError(
                    f"the loss has shape {tuple(losses.shape)}, not one per unit: ({self.units},)"
                )
            losses.sum().backward()
        self._require_complete()
        self._fresh = True
        return losses.detach()

    def add_clipped_grads(self, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
        """Add each present unit's clipped gradient to `total` int64 [P], once per backward. PRIVATE.

        present bool [units], False for padding. A unit adds a vector of L2 norm at most `clip_norm`, in steps of
        clip_norm/2³⁶; see `add_clipped_rows`. Raises GradientError unless a complete backward precedes each call.
        """
        if not self._fresh:
            raise GradientError("add_clipped_grads needs a new, complete backward: a unit would count twice")
        self._fresh = False
        return add_clipped_rows(self.grads, total, clip_norm, present)

    def segment(self, parameter: Tensor | None) -> tuple[Tensor, bool] | None:
        """Return (view [units, *shape] for the gradients of `parameter`, whether to add to it); None if frozen."""
        index = self._index_of.get(id(parameter))
        if index is None:
            return None
        again = index in self._written
        self._written.add(index)
        return self._views[index], again

    def _require_complete(self) -> None:
        """Raise GradientError unless the backward produced every parameter's complete gradient."""
        for index, (name, _, _) in enumerate(self.parameters):
            if self._weights[index].grad is not None:
                self._weights[index].grad = None
                raise GradientError(
                    f"{name} was used outside its layer's forward: its gradient is incomplete"
                )
            if index not in self._written:
                raise GradientError(
                    f"{name} got no gradient: the forward did not use it, or ran without grad"
                )

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """Swap in our forwards for the duration; restore the layers' own whatever happens."""
        before = [layer.__dict__.get("forward") for _, layer, _ in self._layers]
        try:
            for name, layer, rule in self._layers:
                anchor = next(p for p in layer.parameters(recurse=False) if p.requires_grad)
                layer.forward = partial(self._forward, name, layer, rule, anchor)
            yield
        finally:
            for (_, layer, _), forward in zip(self._layers, before, strict=True):
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = forward

    def _forward(self, name: str, layer: nn.Module, rule: Rule, anchor: nn.Parameter, x: Tensor) -> Tensor:
        if len(x) != self.units * self.draws:
            raise GradientError(
                f"{name} saw {len(x)} samples, not units × draws = {self.units} × {self.draws}: "
                "its gradient cannot be split by unit"
            )
        # The anchor requires grad, so autograd does not skip layers whose input does not (time and class embeddings,
        # the first convolution).
        y: Tensor = _PerUnit.apply(x, anchor, layer, rule, self)
        return y


class _PerUnit(torch.autograd.Function):
    """A layer whose backward writes its weights' gradients per unit and returns none to autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, layer: nn.Module, rule: Rule, sink: PerUnitGradients
    ) -> Tensor:
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


def _keep_freed_memory() -> None:
    """Make glibc keep freed blocks: it raises its thresholds (to 31 and 62 MiB) when a large block is freed.

    Otherwise every large temporary is returned to the system and its pages are faulted in again on the next use:
    12 ms of a 90 ms step at 8 px (measured). Has no effect with other allocators.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
