"""A CUDA graph without a GPU: every operation and kernel launch of a call is recorded, and replayed in place.

As a graph does, a replay knows no Python: it repeats the recorded operations on the recorded memory. So a body that
looked at a value from the host, or made a tensor out of one, either is refused here or gives another result.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

READS_PER_VALUE = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.repeat_interleave.Tensor,
}


class HostRead(AssertionError):
    """The recorded call looked at a value: on a GPU it would wait, and a graph could not hold it."""


class Recorded(TorchDispatchMode):
    """Records within `with recorded:`; `replay()` then does it all again."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._again: list[Callable[[], None]] = []
        self._recording = False
        launch = GridExecutor.__call__

        def launched(executor: Any, *args: Any, **kwargs: Any) -> None:
            with _disable_current_modes():
                launch(executor, *args, **kwargs)
            if self._recording:
                self._again.append(lambda: launch(executor, *args, **kwargs))

        patched.setattr(GridExecutor, "__call__", launched)

    def __enter__(self) -> "Recorded":
        self._recording = True
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._recording = False
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        masks = args[1] if func is torch.ops.aten.index.Tensor else ()
        if func in READS_PER_VALUE or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            raise HostRead(f"{func} looks at a value from the host")
        out = func(*args, **kwargs)
        taken = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if all(_memory(tensor) in taken for tensor in made) and not func._schema.is_mutable:
            return out  # a view

        def again() -> None:
            results = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for old, new in zip(made, results, strict=True):
                if _memory(old) not in taken:
                    old.copy_(new)

        self._again.append(again)
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for again in self._again:
                again()


def record_graphs(patched: pytest.MonkeyPatch) -> None:
    """Stand in for torch's CUDA graphs, for `Captured` itself: a graph is what `Recorded` records."""

    @contextlib.contextmanager
    def graph(made: SimpleNamespace, **_: Any) -> Iterator[None]:
        with Recorded(patched) as recorded:
            yield
        made.replay = recorded.replay

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "CUDAGraph": SimpleNamespace,
        "graph": graph,
    }.items():
        patched.setattr(torch.cuda, name, stand_in)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
