"""The trainable parameters of a network: their places in the flat sum, and which of them a backward has written."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from curriculumdp.errors import UserError


class GradientError(UserError):
    """A backward did not produce every unit's gradient of every parameter, or was used twice."""


class Segment(NamedTuple):
    """A parameter's position in the flat order of `net.named_parameters()`."""

    name: str
    shape: torch.Size
    offset: int


class Parameters:
    """The trainable parameters of `net`. Raises GradientError if there is none.

    segments: in the flat order of `net.named_parameters()`; total: their length P.
    """

    def __init__(self, net: nn.Module) -> None:
        trainable = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        if not trainable:
            raise GradientError("the model has no trainable parameter")
        self._tensors = [p for _, p in trainable]
        self._index_of = {id(p): index for index, p in enumerate(self._tensors)}
        self.segments: list[Segment] = []
        self.total = 0
        for name, parameter in trainable:
            self.segments.append(Segment(name, parameter.shape, self.total))
            self.total += parameter.numel()
        self.device = self._tensors[0].device
        self._written: set[int] = set()

    def begin(self) -> None:
        """Forget what was written before, and what autograd left on the parameters."""
        self._written.clear()
        for parameter in self._tensors:
            parameter.grad = None

    def index(self, parameter: Tensor | None) -> int | None:
        """Return the place of `parameter` in `segments`, None if it is not trainable."""
        return self._index_of.get(id(parameter))

    def write(self, parameter: Tensor | None) -> tuple[int, bool] | None:
        """Note that the gradient of `parameter` is written; return its index and whether it had been before.

        None if it is not trainable.
        """
        index = self.index(parameter)
        if index is None:
            return None
        again = index in self._written
        self._written.add(index)
        return index, again

    def require_complete(self) -> None:
        """Raise GradientError unless every parameter's complete gradient was written since `begin`."""
        for index, (name, _, _) in enumerate(self.segments):
            if self._tensors[index].grad is not None:
                self._tensors[index].grad = None
                raise GradientError(
                    f"{name} was used outside its layer's forward: its gradient is incomplete"
                )
            if index not in self._written:
                raise GradientError(
                    f"{name} got no gradient: the forward did not use it, or ran without grad"
                )
