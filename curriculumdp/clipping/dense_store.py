"""The store of a CPU: every unit's whole gradient in one buffer, by the kernels' torch versions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from curriculumdp.clipping.clip import ClipResult, add_clipped_rows
from curriculumdp.clipping.parameters import Parameters
from curriculumdp.clipping.rules import geometry
from dpkernels.accumulate import store
from dpkernels.conv2d import conv2d_bias_grad, conv2d_weight_grad
from dpkernels.embedding import embedding_weight_grad
from dpkernels.linear import linear_bias_grad, linear_weight_grad


class DenseStore:
    """`grads` [units, P] holds each unit's gradient in the flat order of `parameters`. PRIVATE."""

    def __init__(self, parameters: Parameters, units: int, dtype: torch.dtype = torch.float32) -> None:
        self.parameters, self.units = parameters, units
        if parameters.device.type == "cpu":
            _keep_freed_memory()
        self.grads = torch.zeros(units, parameters.total, dtype=dtype, device=parameters.device)
        self._views = [
            self.grads[:, offset : offset + shape.numel()].unflatten(1, shape)
            for _, shape, offset in parameters.segments
        ]

    def begin(self) -> None:
        """Do nothing: every parameter's first write in a backward overwrites what the buffer holds."""

    def add_clipped(self, total: Tensor, clip_norm: float, present: Tensor) -> ClipResult:
        """Add each present, finite unit's clipped, rounded gradient to `total`; see `add_clipped_rows`."""
        return add_clipped_rows(self.grads, total, clip_norm, present)

    def segment(self, parameter: Tensor | None) -> tuple[Tensor, bool] | None:
        """Return (view [units, *shape] for the gradients of `parameter`, whether to add to it); None if frozen."""
        written = self.parameters.write(parameter)
        return None if written is None else (self._views[written[0]], written[1])

    def conv2d(
        self,
        layer: nn.Conv2d,
        sources: Sequence[Tensor],
        grad_out: Tensor,
        *,
        bias: bool,
        scale: int = 1,
    ) -> None:
        """Write a convolution's gradients; its input is the concatenation of `sources`, images [N, C_i, H, W]."""
        view, again = self._of(layer.weight)
        first = 0
        for x in sources:
            part = view[:, :, first : first + x.shape[1]]
            scaled = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3) if scale > 1 else x
            conv2d_weight_grad(scaled, grad_out, part, *geometry(layer), accumulate=again)
            first += x.shape[1]
        if bias and layer.bias is not None:
            conv2d_bias_grad(grad_out, *self._of(layer.bias))

    def linear(self, layer: nn.Linear, x: Tensor, grad_out: Tensor) -> None:
        """Write a linear layer's gradients; x [N, ..., I] and grad_out [N, ..., O]."""
        linear_weight_grad(x, grad_out, *self._of(layer.weight))
        if layer.bias is not None:
            linear_bias_grad(grad_out, *self._of(layer.bias))

    def projections(self, layers: Sequence[nn.Linear], x: Tensor, grad_out: Tensor) -> None:
        """Write the gradients of layers of one size on one input; grad_out [N, T, all their outputs side by side]."""
        for layer, grad in zip(layers, grad_out.chunk(len(layers), -1), strict=True):
            self.linear(layer, x, grad)

    def channels(self, parameters: Sequence[Tensor], sums: Tensor) -> None:
        """Write the gradients of `parameters`, [C] each, from per-sample sums [N, at least as many, C]."""
        by_unit = sums.unflatten(0, (self.units, -1)).sum(1)
        for number, parameter in enumerate(parameters):
            view, again = self._of(parameter)
            store(view, by_unit[:, number], again)

    def embedding(self, layer: nn.Embedding, index: Tensor, grad_out: Tensor) -> None:
        """Write a table's gradients; index [N], grad_out [N, D]."""
        view, again = self._of(layer.weight)
        embedding_weight_grad(index, grad_out, view, layer.padding_idx, again)

    def _of(self, parameter: Tensor) -> tuple[Tensor, bool]:
        segment = self.segment(parameter)
        assert segment is not None, "the fused execution runs trainable layers alone"
        return segment


def _keep_freed_memory() -> None:
    """Make glibc keep freed blocks: it raises its thresholds (to 31 and 62 MiB) when a large block is freed.

    Otherwise every large temporary is returned to the system and its pages are faulted in again on the next use:
    12 ms of a 90 ms step at 8 px (measured). Has no effect with other allocators.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
