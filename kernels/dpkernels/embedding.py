"""Per-unit gradients of an embedding table: row v of unit b is the sum of g over its lookups of v."""

from torch import Tensor

from dpkernels.accumulate import widen


def embedding_weight_grad(
    index: Tensor, grad_out: Tensor, out: Tensor, padding_row: int | None = None, accumulate: bool = False
) -> None:
    """Write each unit's gradient of the table into `out`. PRIVATE.

    index int64 [N, ...] and grad_out [N, ..., D], N = B·K with a unit's K draws contiguous; out [B, V, D], any
    strides; `padding_row` gets no gradient, as in torch; `accumulate` adds to what `out` holds.
    """
    units, _, width = out.shape
    rows = index.reshape(units, -1)
    values = widen(grad_out).reshape(units, -1, width)
    if padding_row is not None:
        values = values.masked_fill((rows == padding_row)[..., None], 0)
    if not accumulate:
        out.zero_()
    out.scatter_add_(1, rows[..., None].expand(values.shape), values.to(out.dtype))
