"""GroupNorm (Wu and He 2018), what is added before it and the SiLU after it, as one operation on rows of channels.

With z = concat(sources) + added + shift, x̂ = (z−μ)·r of z's group, y = x̂·w + b and a = y·σ(y) (or a = y):
    g' = g·σ(y)·(1 + y·(1−σ(y))),  ∂L/∂w = Σ g'·x̂,  ∂L/∂b = Σ g'        over a sample's positions, per channel
    ∂L/∂z = r·(g'·w − mean(g'·w) − x̂·mean(g'·w·x̂))                      means over the group
    ∂L/∂added = ∂L/∂shift = Σ ∂L/∂z                                       per sample and channel
A 1x1 convolution V of the sources, as in a residual path, may run with it: p = V·concat(sources), and V's part of
∂L/∂sources is ∂L/∂p·V.
The sums over positions are returned per sample: added over a unit's draws they are its gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dpkernels import rows_norm_triton
from dpkernels.accumulate import widen
from dpkernels.device import use_triton
from dpkernels.rows import Terms, add_rows


def norm_act(
    sources: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    act: bool,
    added: Tensor | None = None,
    shift: Tensor | None = None,
    first: Terms | None = None,
    through: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return (a [N, H, W, C] of the sources' dtype, mean [N, groups], rstd [N, groups], p [N, H, W, O]). PRIVATE.

    sources: one or two [N, H, W, C_i], contiguous, whose concatenation of C channels is never written; weight, bias and
    added [C], shift [N, C]; act: whether SiLU follows. first: if given, sources[0] is still to be computed:
    it is their sum, rounded to its dtype, and is written. through: V [O, C] of the sources' dtype; without it p is
    None. Sums and statistics in fp32 (fp64 for fp64).
    """
    if use_triton(sources[0]):
        inside = through is not None and rows_norm_triton.multiplies(sources, groups, through)
        y, mean, rstd, product = rows_norm_triton.norm_act(
            sources, weight, bias, groups, eps, act, added, shift, first, through if inside else None
        )
        return y, mean, rstd, product if inside or through is None else _product(sources, through)
    if first is not None:
        add_rows(first.terms, first.bias, sources[0])
    z = _before(sources, added, shift)
    by_group = z.unflatten(3, (groups, -1))
    variance, mean = torch.var_mean(by_group, (1, 2, 4), correction=0)
    rstd = (variance + eps).rsqrt()
    y = _normal(z, mean, rstd) * weight + bias
    product = None if through is None else _product(sources, through)
    return (y * y.sigmoid() if act else y).to(sources[0].dtype), mean, rstd, product


def norm_act_backward(
    sources: Sequence[Tensor],
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    act: bool,
    added: Tensor | None = None,
    shift: Tensor | None = None,
    plus: Sequence[Sequence[Tensor]] = ((), ()),
    product: tuple[Tensor, Tensor] | None = None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return (the gradient of each source, sums over positions [N, 3, C]). PRIVATE.

    grad_out: of a; mean and rstd: from `norm_act`, whose other arguments are repeated; plus: for each source, up to two
    tensors of its shape to add to its gradient, as where a residual path joins; product: V and ∂L/∂p, if p is used,
    beside which `plus` holds one tensor at most. The sums are those of g'·x̂, g' and ∂L/∂z (without `plus` and
    `product`), in fp32 (fp64 for fp64); the last only where `added` or `shift` is given, else undefined.
    """
    groups = mean.shape[1]
    on_triton = use_triton(sources[0])
    if product is not None and not (on_triton and rows_norm_triton.multiplies(sources, groups, product[0])):
        plus = [(part, *extra) for part, extra in zip(_pulled(sources, *product), plus, strict=False)]
        product = None
    if on_triton:
        return rows_norm_triton.norm_act_backward(
            sources, grad_out, mean, rstd, weight, bias, act, added, shift, plus, product
        )
    normal = _normal(_before(sources, added, shift), mean, rstd)
    grad = widen(grad_out)
    if act:
        y = normal * weight + bias
        gate = y.sigmoid()
        grad = grad * gate * (1 + y * (1 - gate))
    pulled = (grad * weight).unflatten(3, (groups, -1))
    both = (pulled, pulled * normal.unflatten(3, (groups, -1)))
    straight, turned = (part.mean((1, 2, 4), keepdim=True).expand_as(pulled).flatten(3) for part in both)
    grad_z = _spread(rstd, weight) * (pulled.flatten(3) - straight - normal * turned)
    sums = torch.stack([part.sum((1, 2)) for part in (grad * normal, grad, grad_z)], 1)
    grads = grad_z.split([source.shape[3] for source in sources], 3)
    return tuple(
        sum((widen(more) for more in extra), part).to(sources[0].dtype)
        for part, extra in zip(grads, plus, strict=False)
    ), sums


def unit_sums(sums: Tensor, out: Tensor, columns: Sequence[int], squares: Tensor) -> None:
    """Add each sample's sums over a unit's draws and store them as gradients. PRIVATE.

    sums fp32 [N, S, C], N = B·K with a unit's K draws contiguous; out [B, width], of which row b takes S segments of C
    that begin at `columns`; squares float64 [B, S] receives each segment's squared norm, of the values as stored.
    """
    if use_triton(sums):
        rows_norm_triton.unit_sums(sums, out, columns, squares)
        return
    by_unit = sums.unflatten(0, (len(out), -1)).sum(1)
    for number, (column, value) in enumerate(zip(columns, by_unit.unbind(1), strict=False)):
        segment = out[:, column : column + value.shape[1]]
        segment.copy_(value)
        squares[:, number] = segment.double().square().sum(1)


def _product(sources: Sequence[Tensor], through: Tensor) -> Tensor:
    """Return p [N, H, W, O]."""
    first, *others = _by_source(sources, through)
    total = sources[0].matmul(first.t())
    for source, weight in zip(sources[1:], others, strict=True):
        total.flatten(0, 2).addmm_(source.flatten(0, 2), weight.t())
    return total


def _pulled(sources: Sequence[Tensor], through: Tensor, grad_product: Tensor) -> list[Tensor]:
    """Return V's part of the gradient of each source."""
    return [grad_product.matmul(weight) for weight in _by_source(sources, through)]


def _by_source(sources: Sequence[Tensor], through: Tensor) -> tuple[Tensor, ...]:
    return through.split([source.shape[3] for source in sources], 1)


def _before(sources: Sequence[Tensor], added: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return z [N, H, W, C]."""
    z = widen(torch.cat(tuple(sources), 3))
    z = z if added is None else z + added
    return z if shift is None else z + widen(shift)[:, None, None]


def _normal(z: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Return x̂ [N, H, W, C]."""
    by_group = z.unflatten(3, (mean.shape[1], -1))
    centre, spread = (part[:, None, None, :, None] for part in (mean, rstd))
    return ((by_group - centre) * spread).flatten(3)


def _spread(rstd: Tensor, weight: Tensor) -> Tensor:
    """Return r of each channel, [N, 1, 1, C]."""
    return rstd.repeat_interleave(len(weight) // rstd.shape[1], 1)[:, None, None]
