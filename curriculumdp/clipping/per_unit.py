"""Per-unit gradients of a network and their clipped sum: the engine of DP-SGD (Abadi et al. 2016).

An *execution* runs the network and its backward and hands every weight's gradient, split by unit, to a *store*, which
clips, rounds and sums. The engine checks that each parameter was written, completely, and is summed once.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from curriculumdp.clipping.clip import ClipResult
from curriculumdp.clipping.dense_store import DenseStore
from curriculumdp.clipping.layerwise import LayerByLayer
from curriculumdp.clipping.parameters import GradientError, Parameters, Segment
from curriculumdp.clipping.rules import Sink

__all__ = ["Execution", "GradientError", "PerUnitGradients", "Segment", "Store"]


class Store(Sink, Protocol):
    """A sink that sums what it was handed. `grads`: what is kept per unit, [B, at most P]."""

    parameters: Parameters
    grads: Tensor

    def begin(self) -> None:
        """Forget the gradients of the backward before."""

    def add_clipped(self, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
        """Add each present, finite unit's clipped, rounded gradient to `total` int64 [P] (design D3)."""


class Execution(Protocol):
    """A way to run the network so that its backward hands per-unit gradients to a sink."""

    def swapped(self, sink: Sink, samples: int) -> AbstractContextManager[None]:
        """Return a context in which the network runs this way, on `samples` samples."""


class PerUnitGradients:
    """Per-unit gradients of a network, for microbatches of `units` units with `draws` draws each. PRIVATE.

    The network sees N = units·draws samples, a unit's draws contiguous, and no operation in it may mix samples. By
    default it runs layer by layer and `grads` [units, total] holds each unit's gradient in the flat order of
    `parameters`, the trainable ones. Raises UnruledLayer, naming the layer, if a trainable layer has no rule, and
    GradientError if nothing is trainable.
    """

    def __init__(
        self,
        net: nn.Module,
        units: int,
        draws: int,
        store: Store | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.units, self.draws = units, draws
        self.execution: Execution = execution or LayerByLayer(net)
        self.store: Store = store or DenseStore(Parameters(net), units)
        self._fresh = False

    @property
    def parameters(self) -> list[Segment]:
        return self.store.parameters.segments

    @property
    def total(self) -> int:
        return self.store.parameters.total

    @property
    def grads(self) -> Tensor:
        return self.store.grads

    def backward(self, forward_loss: Callable[[], Tensor]) -> Tensor:
        """Hand each unit's gradient to the store and return the units' losses [units], detached. PRIVATE.

        `forward_loss` runs the network on units·draws samples and returns one loss per unit, averaged over its draws.
        Raises GradientError if it does not, or, naming the parameter, if a gradient is missing or incomplete.
        """
        self._fresh = False
        self.store.parameters.begin()
        self.store.begin()
        with torch.enable_grad(), self.execution.swapped(self.store, self.units * self.draws):
            losses = forward_loss()
            if losses.shape != (self.units,):
                raise GradientError(
                    f"the loss has shape {tuple(losses.shape)}, not one per unit: ({self.units},)"
                )
            losses.sum().backward()
        self.store.parameters.require_complete()
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
        return self.store.add_clipped(total, clip_norm, present)
