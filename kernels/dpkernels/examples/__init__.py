"""Inputs, kernel calls and expected outputs of the catalogue's rows, one module per family.

Three functions per kernel: `inputs` makes the arguments from a shape, `call` prepares outputs full of NaN and the
kernel's call on them, `truth` returns what must come out: batch-of-one autograd in fp64, or exact integer arithmetic.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

Shape = Mapping[str, Any]
Outputs = dict[str, Tensor]


class Call(NamedTuple):
    """A kernel's call on ready buffers: `launch` runs the kernel and nothing else, `outputs` returns what it wrote."""

    launch: Callable[[], None]
    outputs: Callable[[], Outputs]
