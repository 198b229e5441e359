"""An explicit backward: what was computed, in order, and how each value's gradient goes back to its inputs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

# (gradient of the output, per input what other uses of it gave so far) -> per input the gradient of all its uses
# met so far. Passing the earlier part in lets a kernel add it, which saves a pass over memory.
Pull = Callable[[Tensor, Sequence[Tensor | None]], Sequence[Tensor]]


class _Record(NamedTuple):
    output: Tensor
    inputs: tuple[Tensor, ...]
    pull: Pull


class Tape:
    """Records of one forward. A value's earlier uses come later on the way back."""

    def __init__(self) -> None:
        self._records: list[_Record] = []

    def record(self, output: Tensor, inputs: Sequence[Tensor], pull: Pull) -> Tensor:
        """Note that `output` was computed from `inputs`, and return it."""
        self._records.append(_Record(output, tuple(inputs), pull))
        return output

    def backward(self, grad: Tensor) -> None:
        """Send the gradient of the last output back through all records, dropping each, and its tensors, on the way."""
        pending = {id(self._records[-1].output): grad}
        while self._records:
            output, inputs, pull = self._records.pop()
            earlier = [pending.pop(id(x), None) for x in inputs]
            for x, part in zip(inputs, pull(pending.pop(id(output)), earlier), strict=True):
                # An input twice: the first place got the earlier part, the second adds to it.
                pending[id(x)] = pending[id(x)] + part if id(x) in pending else part
