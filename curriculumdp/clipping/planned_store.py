"""The store of a GPU: norms from the kernels' epilogues, each layer done as the layer plan says."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curriculumdp.clipping.clip import ClipResult
from curriculumdp.clipping.layer_plan import Way
from curriculumdp.clipping.parameters import GradientError, Parameters, Segment
from curriculumdp.clipping.rules import geometry
from dpkernels.clip_sum_triton import add_scaled_rows, clip_scale, squared_row_norms
from dpkernels.conv2d_triton import (
    Geometry,
    add_clipped_conv2d,
    conv2d_grads,
    conv2d_grads_of_two,
    conv2d_parts,
    conv2d_squares,
    suits_one_launch,
)
from dpkernels.device import precision_of
from dpkernels.embedding_triton import embedding_grads, embedding_parts
from dpkernels.limits import MAX_CLIP_NORM, MIN_CLIP_NORM
from dpkernels.linear_triton import as_image, linear_squares, shared_input_grads
from dpkernels.rows_norm import unit_sums


@dataclass(frozen=True)
class _Product:
    """PRIVATE. A recomputed layer's operands, kept until the clipped sum; `first`: its first input channel."""

    layer: nn.Conv2d | nn.Linear
    x: Tensor
    grad_out: Tensor
    geometry: Geometry
    first: int
    bias: bool


class PlannedStore:
    """Per-unit gradients that are stored, recomputed or computed from factors, layer by layer. PRIVATE.

    ways: of each layer that the kernels cover, by name. What belongs to no such layer is stored by its ordinary rule
    and its norm computed afterwards. apart: names of parameters that arrive by `channels` and are stored whatever
    their layer's way. Raises GradientError if two layers share a parameter.
    """

    def __init__(
        self,
        net: nn.Module,
        units: int,
        ways: Mapping[str, Way],
        dtype: torch.dtype = torch.float32,
        apart: frozenset[str] = frozenset(),
    ) -> None:
        _refuse_shared_parameters(net)
        self.parameters, self.units = Parameters(net), units
        self._way_of = {id(net.get_submodule(name)): way for name, way in ways.items()}
        segments = self.parameters.segments
        self._plain = [segment for segment in segments if _layer_of(segment) not in ways]
        self._lay_out(
            dtype, [s for s in segments if s.name in apart or ways.get(_layer_of(s), "store") == "store"]
        )
        self._squares: dict[Hashable, Tensor] = {}
        self._products: list[_Product] = []

    def _lay_out(self, dtype: torch.dtype, stored: list[Segment]) -> None:
        """Allocate one buffer for the stored segments and find the runs that are contiguous in the sum too."""
        width = sum(segment.shape.numel() for segment in stored)
        self.grads = torch.zeros(self.units, width, dtype=dtype, device=self.parameters.device)
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
        self._views = [
            self._columns(s) if s.name in self._column else nothing for s in self.parameters.segments
        ]

    def _columns(self, segment: Segment) -> Tensor:
        column = self._column[segment.name]
        return self.grads[:, column : column + segment.shape.numel()].unflatten(1, segment.shape)

    def begin(self) -> None:
        """Forget the operands that the backward before kept."""
        self._products.clear()

    def add_clipped(self, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
        """Add each present, finite unit's clipped, rounded gradient to `total` int64 [P] (design D3). PRIVATE.

        Reads no value on the host, so that a graph can capture it.
        """
        if not MIN_CLIP_NORM <= clip_norm <= MAX_CLIP_NORM:
            raise ValueError(
                f"clip_norm is {clip_norm}; it must be between {MIN_CLIP_NORM} and {MAX_CLIP_NORM}"
            )
        squared = torch.cat(list(self._squares.values()), 1).sum(1)
        for segment in self._plain:
            squared = squared + squared_row_norms(self._columns(segment).flatten(1))
        norms = squared.sqrt()
        scale = clip_scale(norms, clip_norm, present)
        for column, offset, length in self._runs:
            add_scaled_rows(self.grads[:, column : column + length], scale, total[offset : offset + length])
        for product in self._products:
            self._add_product(product, scale, total)
        self._products.clear()
        return ClipResult(norms, (present & ~norms.isfinite()).sum())

    def _add_product(self, product: _Product, scale: Tensor, total: Tensor) -> None:
        weight = self._in_sum(total, product.layer.weight)
        weight = weight[..., None, None] if weight.dim() == 2 else weight
        bias = self._in_sum(total, product.layer.bias) if product.bias else None
        part = weight[:, product.first : product.first + product.x.shape[1]]
        # The kernel adds to a contiguous sum, which a part of a layer's input channels is not.
        sums = part if part.is_contiguous() else torch.zeros_like(part, memory_format=torch.contiguous_format)
        add_clipped_conv2d(product.x, product.grad_out, scale, sums, bias, product.geometry)
        if sums is not part:
            part.add_(sums)

    def _in_sum(self, total: Tensor, parameter: Tensor | None) -> Tensor:
        """Return a parameter's part of the flat sum, in its shape."""
        index = self.parameters.index(parameter)
        assert index is not None
        segment = self.parameters.segments[index]
        return total[segment.offset : segment.offset + segment.shape.numel()].view(segment.shape)

    def parts(self, key: Hashable, count: int) -> Tensor:
        """Return the buffer, float64 [B, count], that a launch fills with parts of each unit's squared norm."""
        if key not in self._squares or self._squares[key].shape[1] != count:
            shape = (self.units, count)
            self._squares[key] = torch.zeros(shape, dtype=torch.float64, device=self.grads.device)
        return self._squares[key]

    def segment(self, parameter: Tensor | None) -> tuple[Tensor, bool] | None:
        """Return (view [units, *shape] of `parameter`, empty if it is not stored, whether to add to it)."""
        written = self.parameters.write(parameter)
        return None if written is None else (self._views[written[0]], written[1])

    def _of(self, parameter: Tensor) -> tuple[Tensor, bool]:
        segment = self.segment(parameter)
        assert segment is not None
        return segment

    def conv2d(
        self,
        layer: nn.Conv2d,
        sources: Sequence[Tensor],
        grad_out: Tensor,
        *,
        bias: bool,
        scale: int = 1,
    ) -> None:
        """Store a product's gradients and norm, or compute its norm alone and keep its operands; see `Sink`."""
        bias = bias and layer.bias is not None
        self._take(layer, sources, grad_out, Geometry(*geometry(layer), scale), bias)

    def linear(self, layer: nn.Linear, x: Tensor, grad_out: Tensor) -> None:
        """Do as `conv2d` does."""
        self._take(layer, (as_image(x),), as_image(grad_out), Geometry(), layer.bias is not None)

    def _take(
        self,
        layer: nn.Conv2d | nn.Linear,
        sources: Sequence[Tensor],
        grad_out: Tensor,
        geometry: Geometry,
        bias: bool,
    ) -> None:
        (view, again), way = self._of(layer.weight), self._way_of[id(layer)]
        bias_view = self._of(layer.bias)[0] if bias and layer.bias is not None else None
        if way != "store" and again:
            raise GradientError(f"a {type(layer).__name__} is used twice in a forward: plan it as stored")
        rows, _, *taps = _as_conv(layer.weight)
        if way == "store" and len(sources) == 2 and suits_one_launch(sources, (rows, *taps)):
            self._store_two(layer, sources, grad_out, geometry, bias_view, again)
            return
        first = 0
        for number, x in enumerate(sources):
            width, with_bias = x.shape[1], bias and number == 0
            shape, key = (rows, width, *taps), (id(layer), number)
            if way == "store":
                part = view.view(len(view), *_as_conv(layer.weight))[:, :, first : first + width]
                squares = self.parts(key, conv2d_parts(shape, with_bias, x.dtype))
                conv2d_grads(x, grad_out, part, bias_view if with_bias else None, geometry, again, squares)
            else:
                self._norm_alone(key, x, grad_out, shape, geometry, way, with_bias)
                self._products.append(_Product(layer, x, grad_out, geometry, first, with_bias))
            first += width

    def _store_two(
        self,
        layer: nn.Conv2d | nn.Linear,
        sources: Sequence[Tensor],
        grad_out: Tensor,
        geometry: Geometry,
        bias: Tensor | None,
        again: bool,
    ) -> None:
        index = self.parameters.index(layer.weight)
        assert index is not None
        parts = self._views[index].split([x.shape[1] for x in sources], 2)
        squares = []
        for number, part in enumerate(parts):
            count = conv2d_parts(tuple(part.shape[1:]), bias is not None and number == 0, grad_out.dtype)
            squares.append(self.parts((id(layer), number), count))
        conv2d_grads_of_two(sources, grad_out, parts, bias, geometry, again, squares)

    def _norm_alone(
        self,
        key: Hashable,
        x: Tensor,
        grad_out: Tensor,
        shape: tuple[int, ...],
        geometry: Geometry,
        way: Way,
        bias: bool,
    ) -> None:
        if way == "factors" and precision_of(x.dtype) != "tf32":  # tf32 products are coarser than their norm
            x_rows, grad_rows = x[..., 0].transpose(1, 2), grad_out[..., 0].transpose(1, 2)
            self.parts(key, 1)[:, 0] = linear_squares(x_rows, grad_rows, self.units, bias)
            return
        squares = self.parts(key, conv2d_parts(shape, bias, x.dtype, recompute=True))
        conv2d_squares(x, grad_out, shape, bias, geometry, squares)

    def projections(self, layers: Sequence[nn.Linear], x: Tensor, grad_out: Tensor) -> None:
        """Do as `linear` does for each; three stored layers take one launch."""
        grads = grad_out.chunk(len(layers), -1)
        bias = layers[0].bias is not None
        if len(layers) != 3 or any(self._way_of[id(layer)] != "store" for layer in layers):
            for layer, grad in zip(layers, grads, strict=True):
                self.linear(layer, x, grad)
            return
        taken = [self._of(layer.weight) for layer in layers]
        if any(again for _, again in taken):
            raise GradientError("a projection is used twice in a forward: its store would keep one use alone")
        weights = [view for view, _ in taken]
        biases = [self._of(layer.bias)[0] for layer in layers] if bias else None
        count = conv2d_parts(_as_conv(layers[0].weight), bias, x.dtype)
        squares = self.parts(id(layers[0]), 3 * count).view(self.units, 3, count).transpose(0, 1)
        shared_input_grads(x, grads, weights, biases, squares)

    def channels(self, parameters: Sequence[Tensor], sums: Tensor) -> None:
        """Store each unit's sum over its draws, and its norm."""
        columns = []
        for parameter in parameters:
            written = self.parameters.write(parameter)
            assert written is not None
            if written[1]:
                raise GradientError("a norm is used twice in a forward: its store would keep one use alone")
            columns.append(self._column[self.parameters.segments[written[0]].name])
        unit_sums(sums, self.grads, columns, self.parts(id(parameters[0]), len(columns)))

    def embedding(self, layer: nn.Embedding, index: Tensor, grad_out: Tensor) -> None:
        """Store a table's gradients and norm."""
        view, again = self._of(layer.weight)
        squares = self.parts(id(layer), embedding_parts(*layer.weight.shape))
        embedding_grads(index, grad_out, view, layer.padding_idx, again, squares)


def _layer_of(segment: Segment) -> str:
    return segment.name.rpartition(".")[0]


def _as_conv(weight: Tensor) -> tuple[int, ...]:
    """Return a weight's shape as that of a convolution's weight."""
    return tuple(weight.shape) + (1,) * (4 - weight.dim())


def _refuse_shared_parameters(net: nn.Module) -> None:
    """Raise if layers share a parameter: norms would be of each layer's part of its gradient, not of their sum."""
    owners: dict[int, str] = {}
    for name, layer in net.named_modules():
        for parameter in layer.parameters(recurse=False):
            if (first := owners.setdefault(id(parameter), name)) != name:
                raise GradientError(
                    f"{first} and {name} share a parameter, whose norm no kernel takes: untie them"
                )
