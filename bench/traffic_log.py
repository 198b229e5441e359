"""Log what a step reads, writes and multiplies, without a GPU: every library operation and every Triton launch.

The step runs on fake tensors (shapes and strides without memory) of the CPU, under the CPU's autocast; Triton kernels
are not launched. Where a GPU does something else, the log says what the GPU does: a group norm computes on contiguous
fp32 (autocast's rule there), a convolution first copies what is not in its memory format and adds its bias in a kernel
of its own, the backward of a convolution is two products and each reads its operands. Bytes are those of the tensors'
elements, each once per pass: what a cache saves or a partial sector wastes is a matter of the pattern
(`traffic_model.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from dpkernels.device import always_triton

SECTOR = 32  # bytes: the least that an access moves


@dataclass(frozen=True)
class Event:
    """One pass: bytes read and written, floating point operations, and its pattern, a key of `EFFICIENCY`.

    moved: the bytes that memory moves for it where that is known, with the rest of sectors used in part and with what
    is read twice; otherwise `bytes`.
    """

    kind: str
    name: str
    bytes: float
    pattern: str = "streamed"
    flops: float = 0.0
    moved: float | None = None


class TrafficLog(TorchDispatchMode):
    """Logs every operation within it to `events`, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def add(
        self,
        kind: str,
        name: str,
        bytes_: float,
        pattern: str = "streamed",
        flops: float = 0.0,
        moved: float | None = None,
    ) -> None:
        """Log one pass; what has no bytes is left out."""
        if bytes_:
            self.events.append(Event(kind, name, float(bytes_), pattern, float(flops), moved))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name in RULES:
            RULES[name](self, name, args, out)
        elif not _moves_nothing(func, (args, kwargs), out):
            taken = tensors((args, kwargs))
            written = (
                [] if func._schema.is_mutable else tensors(out)
            )  # a mutable's result is among its arguments
            _elementwise(self, name, taken, written)
        return out

    def launch(self, kernel: str, args: Sequence[Any]) -> None:
        """Log one launch of the Triton kernel "module.name" by its rule in LAUNCHES, if it has one."""
        LAUNCHES.get(kernel, _other_launch)(self, kernel, args)


@contextmanager
def logged() -> Iterator[TrafficLog]:
    """Log what runs inside, on fake tensors made inside."""
    log = TrafficLog()

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        log.launch(f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}", args)

    norm = F.group_norm

    def cuda_group_norm(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        wide = x.float() if torch.is_autocast_enabled(x.device.type) else x
        return norm(wide.contiguous(), *rest, **options)

    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(always_triton())
        for compiled_or_interpreted in (JITFunction, InterpretedFunction):
            stack.enter_context(patch.object(compiled_or_interpreted, "run", launch))
        stack.enter_context(patch.object(F, "group_norm", cuda_group_norm))
        stack.enter_context(log)
        yield log


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors of a value, nested or not."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def size(*of: Tensor | None) -> int:
    """Return the bytes of the tensors' distinct elements: an expanded dimension counts once."""
    return sum(
        t.element_size() * prod(n for n, s in zip(t.shape, t.stride(), strict=True) if s)
        for t in of
        if t is not None
    )


def _moves_nothing(func: Any, taken: Any, out: Any) -> bool:
    """Return whether an operation only allocates or returns views."""
    memory = {t.untyped_storage()._cdata for t in tensors(taken)}
    views = all(t.untyped_storage()._cdata in memory for t in tensors(out))
    return "empty" in func._schema.name or (views and not func._schema.is_mutable)


def _order(t: Tensor) -> tuple[int, ...]:
    """Return the dimensions of more than one element, outermost first."""
    dims = [d for d in range(t.dim()) if t.shape[d] > 1]
    return tuple(sorted(dims, key=lambda d: -t.stride(d)))


def _dense(t: Tensor) -> bool:
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return span == t.numel()


def pattern_of(of: Sequence[Tensor]) -> str:
    """Return the pattern of an elementwise pass over these tensors.

    "streamed": all dense, of one shape and order of dimensions, 16 bytes an access. "across layouts": the order of
    dimensions differs. "strided": it does not, but one is broadcast or has gaps.
    """
    large = max((t.numel() for t in of), default=0)
    whole = [t for t in of if t.dim() and t.numel() == large]
    if len({_order(t) for t in whole}) > 1:
        return "across layouts"
    parts = [t for t in of if 1 < t.numel() < large]
    return "strided" if parts or not all(_dense(t) for t in whole) else "streamed"


def _elementwise(log: TrafficLog, name: str, taken: list[Tensor], written: list[Tensor]) -> None:
    of = [*taken, *written]
    kind, pattern = KINDS.get(name, "other"), pattern_of(of)
    if name in COPIES:
        casts = len({t.dtype for t in of}) > 1
        kind = "casts" if casts else "layout copies"
        pattern = {"streamed": "cast" if casts else pattern, "across layouts": "copied across layouts"}.get(
            pattern, pattern
        )
    log.add(kind, name, size(*of), "cast" if name == "cat" else pattern)


COPIES = ("_to_copy", "clone", "copy_")
KINDS = {
    "silu": "silu",
    "silu_backward": "silu",
    "cat": "concatenation",
    "add": "adds",
    "add_": "adds",
    "sub": "adds",
    "mul": "adds",
    "div": "division",
}


def _require_format(log: TrafficLog, t: Tensor, layout: torch.memory_format) -> None:
    if not t.is_contiguous(memory_format=layout):
        same = _order(t) == _order(torch.empty_like(t, memory_format=layout))
        log.add(
            "layout copies",
            "before a convolution",
            2 * size(t),
            "strided" if same else "copied across layouts",
        )


def _layout(*of: Tensor) -> torch.memory_format:
    last = torch.channels_last
    chosen = any(t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in of)
    return last if chosen else torch.contiguous_format


def _convolution(log: TrafficLog, name: str, args: Any, y: Tensor) -> None:
    x, weight, bias = args[:3]
    layout = _layout(y, weight)
    _require_format(log, x, layout)
    at = x if args[6] else y  # transposed: a product at each pixel of the input
    log.add("convolution", name, size(x, weight, y), "product", 2 * at.numel() * weight[0].numel())
    if bias is not None:
        log.add("adds", "bias after convolution", 2 * size(y), "strided")


def _convolution_backward(log: TrafficLog, name: str, args: Any, out: Any) -> None:
    grad, x, weight = args[:3]
    wants_input, wants_weight, wants_bias = args[-1]
    layout = _layout(x, weight)
    flops = 2 * grad.numel() * weight[0].numel()
    _require_format(log, grad, layout)
    if wants_input:
        log.add("convolution", "input gradient", size(grad, weight, x), "product", flops)
    if wants_weight:
        _require_format(log, x, layout)
        log.add("weight gradients", "weight gradient", size(grad, x, weight), "product", flops)
    if wants_bias:
        log.add("other", "bias gradient", size(grad))


def _product(log: TrafficLog, name: str, args: Any, out: Tensor) -> None:
    left = tensors(args)[-2]
    log.add("linear", name, size(*tensors(args), out), "product", 2 * out.numel() * left.shape[-1])


def _attention(log: TrafficLog, name: str, args: Any, out: Any) -> None:
    q = tensors(args)[1 if "backward" in name else 0]
    products = 5 if "backward" in name else 2
    log.add(
        "attention",
        name,
        size(*tensors(args), *tensors(out)),
        "attention",
        products * 2 * q.numel() * q.shape[-2],
    )


def _library_norm(log: TrafficLog, name: str, args: Any, out: Any) -> None:
    # Forward: moments, then the result, each a pass over x. Backward: sums over g and x, then both again.
    x = tensors(args)[0]
    operands, passes = (3, 5) if "backward" in name else (2, 3)
    log.add("norm", name, operands * size(x), "library norm", moved=passes * size(x))


RULES: dict[str, Callable[[TrafficLog, str, Any, Any], None]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "mm": _product,
    "addmm": _product,
    "bmm": _product,
    "native_group_norm": _library_norm,
    "native_group_norm_backward": _library_norm,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention,
}


def _sectors(t: Tensor, channels: int) -> float:
    """Return the bytes moved if programs of `channels` channels access [N, C, ...]: whole sectors, if channels_last."""
    run = channels * t.element_size() if _order(t)[-1] == 1 else SECTOR
    return size(t) * max(1.0, SECTOR / run)


def _norm_forward(log: TrafficLog, name: str, args: Any) -> None:
    x, y, _, _, mean = tensors(args)[:5]
    wide = x.shape[1] // mean.shape[1]
    log.add("norm", name, size(x, y), "group runs", moved=_sectors(x, wide) + _sectors(y, wide))


def _norm_backward(log: TrafficLog, name: str, args: Any) -> None:
    x, grad, grad_x, mean = tensors(args)[:4]
    wide = x.shape[1] // mean.shape[1]
    moved = 2 * (_sectors(x, wide) + _sectors(grad, wide)) + _sectors(grad_x, wide)
    log.add("norm", name, size(x, grad, grad_x), "group runs", moved=moved)


def _distinct(args: Any) -> list[Tensor]:
    """Return a launch's tensors, each once: a kernel that takes fewer than it can is given one of them again."""
    return list(
        {(t.untyped_storage()._cdata, t.storage_offset(), t.shape): t for t in tensors(args)}.values()
    )


def _unit_gradients(log: TrafficLog, name: str, args: Any) -> None:
    of, products = _distinct(args), 3 if "shared" in name else 1
    layers = [a for a in args if hasattr(a, "cout")]
    weights = sum(layer.cout * layer.cin * layer.kh * layer.kw for layer in layers)
    flops = products * 2 * len(of[0]) * layers[0].oh * layers[0].ow * weights
    log.add("weight gradients", name, size(*of), "unit product", flops)


def _row_sums(log: TrafficLog, name: str, args: Any) -> None:
    log.add("adds", name, size(*_distinct(args)))


def _unit_sums(log: TrafficLog, name: str, args: Any) -> None:
    sums, grads = tensors(args)[
        :2
    ]  # of all gradients only some columns are written: fewer bytes than the sums have
    log.add("norm", name, size(sums) + len(grads) * size(sums) // len(sums), "rows")


def _row_norm(log: TrafficLog, name: str, args: Any) -> None:
    sizes = next(a for a in args if hasattr(a, "positions"))
    of = _distinct(args)
    flops = 2 * len(of[0]) * sizes.positions * (sizes.first + sizes.second) * sizes.out
    log.add("norm", name, size(*of), "rows backward" if "backward" in name else "rows", flops)


def _row_attention(log: TrafficLog, name: str, args: Any) -> None:
    head = next(a for a in args if hasattr(a, "heads"))
    of = _distinct(args)
    samples = max(t.shape[0] for t in of)
    backward = "backward" in name
    flops = (7 if backward else 2) * 2 * samples * head.heads * head.tokens**2 * head.width
    if head.project:  # the queries' and the keys' programs both multiply by the output's weight
        tiles = 1 + -(-head.tokens // args[-1])
        flops += (3 + tiles if backward else 1) * 2 * samples * head.tokens * head.width**2
    log.add("attention", name, size(*of), "attention", flops)


def _other_launch(log: TrafficLog, name: str, args: Any) -> None:
    """Log a kernel without a rule: each tensor is read or written once, in long runs; no operations are counted."""
    kind = next((kind for part, kind in LAUNCH_KINDS.items() if part in name), "other")
    log.add(kind, name, size(*_distinct(args)), "rows backward" if "backward" in name else "rows")


Launch = Callable[[TrafficLog, str, Any], None]
LAUNCHES: dict[str, Launch] = {
    "group_norm_triton._forward_kernel": _norm_forward,
    "group_norm_triton._group_norm_kernel": _norm_backward,
    "conv2d_triton._unit_kernel": _unit_gradients,
    "conv2d_triton._two_sources_kernel": _unit_gradients,
    "conv2d_triton._recompute_kernel": _unit_gradients,
    "conv2d_taps_triton._taps_kernel": _unit_gradients,
    "linear_triton._shared_kernel": _unit_gradients,
    "rows_triton._add_kernel": _row_sums,
    "rows_norm_kernels._rows_forward_kernel": _row_norm,
    "rows_norm_kernels._rows_backward_kernel": _row_norm,
    "rows_norm_triton._draws_kernel": _unit_sums,
    "attention_triton._attend_kernel": _row_attention,
    "attention_triton._attend_backward_kernel": _row_attention,
}
LAUNCH_KINDS = {"clip_sum": "clip and sum", "norm": "norm"}
