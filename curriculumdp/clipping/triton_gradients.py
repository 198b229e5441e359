"""Per-unit gradients on Triton: norms from the kernels' epilogues, each layer done as the layer plan says."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curriculumdp.clipping.clip import ClipResult
from curriculumdp.clipping.layer_plan import EnginePlan
from curriculumdp.clipping.per_unit import GradientError, PerUnitGradients, Segment
from curriculumdp.clipping.rules import RULES, Rule
from dpkernels.clip_sum_triton import add_scaled_rows, clip_scale, squared_row_norms
from dpkernels.conv2d_triton import Geometry, add_clipped_conv2d, conv2d_grads, conv2d_parts, conv2d_squares
from dpkernels.device import precision_of
from dpkernels.embedding_triton import embedding_grads, embedding_parts
from dpkernels.group_norm_triton import group_norm_forward, group_norm_input_and_unit_grads
from dpkernels.limits import MAX_CLIP_NORM, MIN_CLIP_NORM
from dpkernels.linear_triton import as_image, linear_squares, shared_input_grads


@dataclass(frozen=True)
class _Product:
    """PRIVATE. A recomputed layer's operands, kept until the clipped sum."""

    layer: nn.Module
    x: Tensor
    grad_out: Tensor
    geometry: Geometry


@dataclass
class _Shared:
    """Consecutive linear layers with the same input; three of them (query, key, value) take one launch."""

    x: Tensor
    version: int
    layers: list[nn.Linear] = field(default_factory=list)
    cast: Tensor | None = None
    grads: dict[int, Tensor] = field(default_factory=dict)


class FusedGradients(PerUnitGradients):
    """`PerUnitGradients` on Triton kernels. PRIVATE.

    Without a layer plan every layer is stored, in `dtype`. A layer that the kernels do not cover (grouped convolution,
    partly frozen layer) is stored by its ordinary rule and its norm computed afterwards. channels_last: convolutions
    return that memory format whatever their input has. Raises GradientError if two layers share a parameter.
    """

    def __init__(
        self,
        net: nn.Module,
        units: int,
        draws: int,
        plan: EnginePlan | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__(net, 0, draws, dtype)  # 0 units: _lay_out allocates `grads`, by the layer plan
        self.units = units
        self._refuse_shared_parameters()
        fused = {name for name, layer, _ in self._layers if _fused_rule(layer) is not None}
        ways = {} if plan is None else {p.layer.name: p.way for p in plan.layers if p.layer.name in fused}
        self._way_of = {id(layer): ways.get(name, "store") for name, layer, _ in self._layers}
        self._plain = [segment for segment in self.parameters if segment.name.rpartition(".")[0] not in fused]
        recomputed = {name for name, way in ways.items() if way != "store"}
        self._lay_out(dtype, [s for s in self.parameters if s.name.rpartition(".")[0] not in recomputed])
        own: dict[type[nn.Module], Callable[[Any, Tensor], tuple[Tensor, tuple[Tensor, ...]]]] = {
            nn.Conv2d: partial(_conv2d_forward, channels_last),
            nn.Linear: self._linear_forward,
        }
        self._layers = [
            (name, layer, replace(fused, forward=own.get(type(layer), fused.forward)) if fused else rule)
            for name, layer, rule in self._layers
            for fused in [_fused_rule(layer)]
        ]
        self._squares: dict[int, Tensor] = {}
        self._products: list[_Product] = []
        self._shared_squares: dict[int, Tensor] = {}
        self._inputs: dict[int, _Shared] = {}
        self._last: _Shared | None = None
        self._calls: Counter[int] = Counter()

    def _refuse_shared_parameters(self) -> None:
        """Raise if layers share a parameter: norms would be of each layer's part of its gradient, not of their sum."""
        owners: dict[int, str] = {}
        for name, layer, _ in self._layers:
            for parameter in layer.parameters(recurse=False):
                if (first := owners.setdefault(id(parameter), name)) != name:
                    raise GradientError(
                        f"{first} and {name} share a parameter, whose norm no kernel takes: untie them"
                    )

    def _lay_out(self, dtype: torch.dtype, stored: list[Segment]) -> None:
        """Allocate one buffer for the stored segments and find the runs that are contiguous in the sum too."""
        width = sum(segment.shape.numel() for segment in stored)
        self.grads = torch.zeros(self.units, width, dtype=dtype, device=self._weights[0].device)
        self._column: dict[str, int] = {}
        self._runs: list[tuple[int, int, int]] = []  # (column, offset in the sum, length)
        column = 0
        for segment in stored:
            length = segment.shape.numel()
            self._column[segment.name] = column
            if self._runs and self._runs[-1][1] + self._runs[-1][2] == segment.offset:
                first, offset, before = self._runs[-1]
                self._runs[-1] = (first, offset, before + length)
            else:
                self._runs.append((column, segment.offset, length))
            column += length
        nothing = self.grads[:, :0]
        self._views = [self._columns(s) if s.name in self._column else nothing for s in self.parameters]

    def _columns(self, segment: Segment) -> Tensor:
        column = self._column[segment.name]
        return self.grads[:, column : column + segment.shape.numel()].unflatten(1, segment.shape)

    def backward(self, forward_loss: Callable[[], Tensor]) -> Tensor:
        """Fill `grads` and the norms' parts, keep recomputed layers' operands and return the losses [B]. PRIVATE."""
        self._products.clear()
        self._calls.clear()
        try:
            return super().backward(forward_loss)
        finally:
            self._inputs.clear()
            self._last = None

    def _forward(self, name: str, layer: nn.Module, rule: Rule, anchor: nn.Parameter, x: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear):
            last = self._last
            if last is None or last.x is not x or last.version != x._version:
                self._last = last = _Shared(x, x._version)
            last.layers.append(layer)
            self._inputs[id(layer)] = last
            self._calls[id(layer)] += 1
        return super()._forward(name, layer, rule, anchor, x)

    def _linear_forward(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shared = self._inputs[id(layer)]
        if shared.cast is None:  # query, key and value share one copy of their input
            shared.cast = _autocast(x)
        weight, bias = _autocast(layer.weight), None if layer.bias is None else _autocast(layer.bias)
        return F.linear(shared.cast, weight, bias), (shared.cast, weight)

    def _require_complete(self) -> None:
        for shared in self._inputs.values():
            if shared.grads:
                raise GradientError("a linear layer that shares its input with others got no gradient")
        super()._require_complete()

    def add_clipped_grads(self, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
        """Add each present, finite unit's clipped, rounded gradient to `total` int64 [P] (design D3). PRIVATE."""
        if not MIN_CLIP_NORM <= clip_norm <= MAX_CLIP_NORM:
            raise ValueError(
                f"clip_norm is {clip_norm}; it must be between {MIN_CLIP_NORM} and {MAX_CLIP_NORM}"
            )
        if not self._fresh:
            raise GradientError("add_clipped_grads needs a new, complete backward: a unit would count twice")
        self._fresh = False
        norms, excluded = self._sum_clipped(total, clip_norm, present)
        return ClipResult(norms, excluded)

    def _sum_clipped(self, total: Tensor, clip_norm: float, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return (norms [B], number of units excluded). Reads no value on the host, so that a graph can capture it."""
        squared = torch.cat(list(self._squares.values()), 1).sum(1)
        for segment in self._plain:
            squared = squared + squared_row_norms(self._columns(segment).flatten(1))
        norms = squared.sqrt()
        scale = clip_scale(norms, clip_norm, present)
        for column, offset, length in self._runs:
            add_scaled_rows(self.grads[:, column : column + length], scale, total[offset : offset + length])
        for product in self._products:
            weight, bias = (self._in_sum(total, p) for p in (product.layer.weight, product.layer.bias))
            assert weight is not None
            weight = weight[..., None, None] if weight.dim() == 2 else weight
            add_clipped_conv2d(product.x, product.grad_out, scale, weight, bias, product.geometry)
        self._products.clear()
        return norms, (present & ~norms.isfinite()).sum()

    def _in_sum(self, total: Tensor, parameter: Any) -> Tensor | None:
        """Return a parameter's part of the flat sum, in its shape."""
        if parameter is None:
            return None
        segment = self.parameters[self._index_of[id(parameter)]]
        return total[segment.offset : segment.offset + segment.shape.numel()].view(segment.shape)

    def parts(self, layer: nn.Module, count: int) -> Tensor:
        """Return the buffer, float64 [B, count], that a layer's launch fills with parts of each unit's squared norm."""
        if id(layer) not in self._squares or self._squares[id(layer)].shape[1] != count:
            shape = (self.units, count)
            self._squares[id(layer)] = torch.zeros(shape, dtype=torch.float64, device=self.grads.device)
        return self._squares[id(layer)]

    def take(self, layer: Any, x: Tensor, grad_out: Tensor, geometry: Geometry) -> None:
        """Store a product's gradients and norm, or compute its norm alone and keep its operands."""
        weight, bias = self.segment(layer.weight), self.segment(layer.bias)
        assert weight is not None
        shape, way = _as_conv(layer.weight), self._way_of[id(layer)]
        parts = conv2d_parts(shape, bias is not None, x.dtype, recompute=way != "store")
        if way == "store":
            view = weight[0] if weight[0].dim() == 5 else weight[0][..., None, None]
            squares = self.parts(layer, parts)
            conv2d_grads(x, grad_out, view, bias and bias[0], geometry, weight[1], squares)
            return
        if weight[1]:
            raise GradientError(f"a {type(layer).__name__} is used twice in a forward: plan it as stored")
        if way == "factors" and precision_of(x.dtype) != "tf32":  # tf32 products are coarser than their norm
            x_rows, grad_rows = x[..., 0].transpose(1, 2), grad_out[..., 0].transpose(1, 2)
            self.parts(layer, 1)[:, 0] = linear_squares(x_rows, grad_rows, self.units, bias is not None)
        else:
            conv2d_squares(x, grad_out, shape, bias is not None, geometry, self.parts(layer, parts))
        self._products.append(_Product(layer, x, grad_out, geometry))

    def take_linear(self, layer: nn.Linear, x: Tensor, grad_out: Tensor) -> None:
        """Do what `take` does, but collect three stored layers with one input into one launch."""
        shared = self._inputs[id(layer)]
        if not self._together(shared):
            self.take(layer, as_image(x), as_image(grad_out), Geometry())
            return
        shared.grads[id(layer)] = grad_out.contiguous()
        if len(shared.grads) < len(shared.layers):
            return
        q, k, v = shared.layers
        shape, bias = _as_conv(q.weight), q.bias is not None
        squares = self._shared_parts((q, k, v), conv2d_parts(shape, bias, x.dtype))
        grads = [shared.grads[id(layer)] for layer in (q, k, v)]
        weights, biases = (
            [self._view_of(p) for p in parameters]
            for parameters in ((q.weight, k.weight, v.weight), (q.bias, k.bias, v.bias) if bias else ())
        )
        shared_input_grads(x, grads, weights, biases if bias else None, squares)
        shared.grads.clear()

    def _together(self, shared: _Shared) -> bool:
        """Return whether an input's layers are three of the same size, all stored and each used once."""
        first = shared.layers[0]
        return len(shared.layers) == 3 and all(
            layer.weight.shape == first.weight.shape
            and (layer.bias is None) == (first.bias is None)
            and self._calls[id(layer)] == 1
            and self._way_of[id(layer)] == "store"
            for layer in shared.layers
        )

    def _view_of(self, parameter: Tensor) -> Tensor:
        segment = self.segment(parameter)
        assert segment is not None
        return segment[0]

    def _shared_parts(self, layers: tuple[nn.Module, ...], count: int) -> Tensor:
        """Return the parts of several layers as one buffer, float64 [layers, B, count]."""
        first = self._squares.get(id(layers[0]))
        if first is None or first.shape[1] != count:
            shape = (len(layers), self.units, count)
            whole = torch.zeros(shape, dtype=torch.float64, device=self.grads.device)
            self._squares.update({id(layer): part for layer, part in zip(layers, whole, strict=True)})
            self._shared_squares[id(layers[0])] = whole
        return self._shared_squares[id(layers[0])]


def _as_conv(weight: Tensor) -> tuple[int, ...]:
    """Return a weight's shape as that of a convolution's weight."""
    return tuple(weight.shape) + (1,) * (4 - weight.dim())


def _autocast(tensor: Tensor) -> Tensor:
    """Return the tensor as autocast would pass it to a matrix product."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _conv2d_forward(channels_last: bool, layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the convolution. A one-channel image has both layouts, so only the weight can request channels_last."""
    x, weight = _autocast(x), _autocast(layer.weight)
    if channels_last:
        empty = torch.empty_like(weight, memory_format=torch.channels_last)
        weight = empty.copy_(weight)
    bias = None if layer.bias is None else _autocast(layer.bias)
    y = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
    return y, (x, weight)


def _conv2d_backward(
    layer: nn.Conv2d, saved: tuple[Tensor, ...], grad_out: Tensor, wants_input: bool, sink: Any
) -> Tensor | None:
    x, weight = saved
    geometry = Geometry(layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]  # pairs: no strings
    sink.take(layer, x, grad_out, geometry)
    if not wants_input:
        return None
    return torch.ops.aten.convolution_backward(
        grad_out, x, weight, None, *geometry, False, (0, 0), layer.groups, (True, False, False)
    )[0]


def _linear_backward(
    layer: nn.Linear, saved: tuple[Tensor, ...], grad_out: Tensor, wants_input: bool, sink: Any
) -> Tensor | None:
    x, weight = saved
    sink.take_linear(layer, x, grad_out)
    return grad_out.matmul(weight) if wants_input else None


def _group_norm_forward(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    # Autocast returns the norm's output in fp32; the kernel does so without an fp32 copy of the input.
    dtype = torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype
    y, mean, rstd = group_norm_forward(x, layer.weight, layer.bias, layer.num_groups, layer.eps, dtype)
    return y, (x, mean, rstd)


def _group_norm_backward(
    layer: nn.GroupNorm, saved: tuple[Tensor, ...], grad_out: Tensor, wants_input: bool, sink: Any
) -> Tensor | None:
    x, mean, rstd = saved
    (scale, again), (shift, _) = sink.segment(layer.weight), sink.segment(layer.bias)
    squares = sink.parts(layer, mean.shape[1])
    return group_norm_input_and_unit_grads(
        x, grad_out, mean, rstd, layer.weight, scale, shift, again, squares
    )


def _embedding_backward(
    layer: nn.Embedding, saved: tuple[Tensor, ...], grad_out: Tensor, wants_input: bool, sink: Any
) -> Tensor | None:
    view, again = sink.segment(layer.weight)
    squares = sink.parts(layer, embedding_parts(*layer.weight.shape))
    embedding_grads(saved[0], grad_out, view, layer.padding_idx, again, squares)
    return None


FUSED_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: replace(RULES[nn.Conv2d], backward=_conv2d_backward),
    nn.Linear: replace(RULES[nn.Linear], backward=_linear_backward),
    nn.GroupNorm: Rule(_group_norm_forward, _group_norm_backward),
    nn.Embedding: replace(RULES[nn.Embedding], backward=_embedding_backward),
}


def _fused_rule(layer: nn.Module) -> Rule | None:
    """Return the layer's rule on the kernels, or None if they do not cover it."""
    trainable = all(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    return FUSED_RULES.get(type(layer)) if trainable and getattr(layer, "groups", 1) == 1 else None
