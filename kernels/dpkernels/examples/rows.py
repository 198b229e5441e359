"""Norms and sums on rows of channels: inputs, calls and expected outputs, and their rows of the catalogue."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpkernels.examples import Call, Outputs, Shape
from dpkernels.rows import Terms, add_rows
from dpkernels.rows_norm import norm_act, norm_act_backward, unit_sums


def _normal(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _quarters(tensor: Tensor) -> Tensor:
    return (4 * tensor).round() / 4


def _by_unit(units: int, samples: int, grads: Callable[[slice], tuple[Tensor, ...]]) -> list[Tensor]:
    """Stack what `grads` returns for each unit's samples."""
    draws = samples // units
    parts = [grads(slice(unit * draws, (unit + 1) * draws)) for unit in range(units)]
    return [torch.stack(part) for part in zip(*parts, strict=True)]


# --- norm ---------------------------------------------------------------------------------------------------


def norm_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    channels = sum(s["sources"])
    samples = s["units"] * s["draws"]
    # A mean far from 0 exposes bad cancellation.
    sources = [_normal(samples, *s["size"], width, dtype=dtype, device=device) + 3 for width in s["sources"]]
    plus = [[torch.randn_like(x) for _ in range(s["plus"])] for x in sources]
    weight, bias, added = (_normal(channels, dtype=torch.float32, device=device) for _ in range(3))
    # Quarters, whose sums bf16 holds: the interpreter cuts where a GPU rounds, which the statistics would show.
    terms = tuple(_quarters(torch.randn_like(sources[0])) for _ in range(s["terms"]))
    level = _quarters(_normal(s["sources"][0], dtype=torch.float32, device=device))
    through = _normal(s["out"], channels, dtype=dtype, device=device) if s["out"] else None
    return {
        "sources": sources,
        "grad_out": _normal(samples, *s["size"], channels, dtype=dtype, device=device),
        "affine": (weight, bias),
        "groups": s["groups"],
        "before": {
            "added": added if s["added"] else None,
            "shift": _normal(samples, channels, dtype=dtype, device=device) if s["added"] else None,
        },
        "act": s["act"],
        "first": Terms(terms, level if s["added"] else None) if terms else None,
        "through": through,
        "grad_product": _normal(samples, *s["size"], s["out"], dtype=dtype, device=device),
        "plus": plus,
        "units": s["units"],
    }


def norm_forward_call(
    sources: list[Tensor],
    affine: tuple[Tensor, Tensor],
    groups: int,
    before: dict[str, Any],
    act: bool,
    first: Terms | None,
    through: Tensor | None,
    **backward: Any,
) -> Call:
    written: Outputs = {}

    def launch() -> None:
        given = sources if first is None else [torch.empty_like(sources[0]), *sources[1:]]
        y, mean, rstd, product = norm_act(
            given, *affine, groups, 1e-5, act=act, **before, first=first, through=through
        )
        written.update(y=y, mean=mean, rstd=rstd)
        if product is not None:
            written["product"] = product
        if first is not None:
            written["sum"] = given[0]

    return Call(launch, lambda: written)


def norm_forward_truth(
    sources: list[Tensor],
    affine: tuple[Tensor, Tensor],
    groups: int,
    before: dict[str, Any],
    act: bool,
    first: Terms | None,
    through: Tensor | None,
    **backward: Any,
) -> Outputs:
    if first is not None:
        sources = [add_truth(list(first.terms), first.bias)["sum"], *sources[1:]]
    more = {} if first is None else {"sum": sources[0]}
    wide = [x.double() for x in sources]
    if through is not None:
        more["product"] = torch.cat(wide, 3).matmul(through.double().t()).to(sources[0].dtype)
    z = _summed(wide, before)
    y = _plain_norm(z, groups, *affine, act)
    by_group = z.unflatten(3, (groups, -1))
    variance, mean = torch.var_mean(by_group, (1, 2, 4), correction=0)
    rstd = (variance + 1e-5).rsqrt()
    return {"y": y.to(sources[0].dtype), "mean": mean, "rstd": rstd} | more


def norm_call(
    sources: list[Tensor],
    grad_out: Tensor,
    affine: tuple[Tensor, Tensor],
    groups: int,
    before: dict[str, Any],
    act: bool,
    through: Tensor | None,
    grad_product: Tensor,
    plus: list[list[Tensor]],
    units: int,
    first: Terms | None,
) -> Call:
    _, mean, rstd, _ = norm_act(sources, *affine, groups, 1e-5, act=act, **before)
    product = None if through is None else (through, grad_product)
    channels, kinds = len(affine[0]), 3 if before["added"] is not None else 2
    # Segments at odd columns, as in G.
    out = torch.full((units, kinds * channels + 5), torch.nan, dtype=grad_out.dtype, device=grad_out.device)
    columns = [3 + kind * channels for kind in range(kinds)]
    squares = torch.full((units, kinds), torch.nan, dtype=torch.float64, device=grad_out.device)
    written: Outputs = {}

    def launch() -> None:
        grads, sums = norm_act_backward(
            sources, grad_out, mean, rstd, *affine, act=act, plus=plus, product=product, **before
        )
        unit_sums(sums, out, columns, squares)
        written.update({f"x{number}": grad for number, grad in enumerate(grads)})
        if kinds == 3:
            written["shift"] = sums[:, 2]

    def outputs() -> Outputs:
        weight, bias, *added = (out[:, at : at + channels] for at in columns)
        return written | {"weight": torch.cat([weight, *added], 1), "bias": bias, "squares": squares.sum(1)}

    return Call(launch, outputs)


def norm_truth(
    sources: list[Tensor],
    grad_out: Tensor,
    affine: tuple[Tensor, Tensor],
    groups: int,
    before: dict[str, Any],
    act: bool,
    through: Tensor | None,
    grad_product: Tensor,
    plus: list[list[Tensor]],
    units: int,
    first: Terms | None,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        xs = [x[samples].double().requires_grad_() for x in sources]
        inside = {name: None if t is None else t.double() for name, t in before.items()}
        if inside["shift"] is not None:
            inside["shift"] = inside["shift"][samples]
        leaves = [
            t.requires_grad_() for t in (*(t.double() for t in affine), *inside.values()) if t is not None
        ]
        y = _plain_norm(_summed(xs, inside), groups, leaves[0], leaves[1], act)
        return torch.autograd.grad(y, (*xs, *leaves), grad_out[samples].double())

    found = _by_unit(units, len(grad_out), grads)
    moved, (weight, bias, *inner) = [x.flatten(0, 1) for x in found[: len(sources)]], found[len(sources) :]
    if through is not None:
        pulled = grad_product.double().matmul(through.double()).split([x.shape[3] for x in sources], 3)
        moved = [grad + part for grad, part in zip(moved, pulled, strict=True)]
    truth = {
        f"x{number}": sum((more.double() for more in extra), grad).to(grad_out.dtype)
        for number, (grad, extra) in enumerate(zip(moved, plus, strict=True))
    }
    if inner:
        truth["shift"] = inner[1].flatten(0, 1)
    stored = torch.cat([weight, *inner[:1]], 1).to(grad_out.dtype), bias.to(grad_out.dtype)
    squares = sum((t.double().square().sum(1) for t in stored), torch.tensor(0.0))
    return truth | {"weight": stored[0], "bias": stored[1], "squares": squares}


def _summed(sources: list[Tensor], before: Mapping[str, Tensor | None]) -> Tensor:
    z = torch.cat(sources, 3)
    for tensor in before.values():
        z = z if tensor is None else z + tensor.view(-1, 1, 1, z.shape[3])
    return z


def _plain_norm(z: Tensor, groups: int, weight: Tensor, bias: Tensor, act: bool) -> Tensor:
    # contiguous: torch's own group_norm backward can crash on a CPU in channels_last.
    y = F.group_norm(z.permute(0, 3, 1, 2).contiguous(), groups, weight.double(), bias.double())
    return (F.silu(y) if act else y).permute(0, 2, 3, 1)


# --- sums -----------------------------------------------------------------------------------


def add_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    terms = [_normal(*s["rows"], dtype=dtype, device=device) for _ in range(s["terms"])]
    bias = _normal(s["rows"][3], dtype=torch.float32, device=device) if s["bias"] else None
    return {"terms": terms, "bias": bias}


def add_call(terms: list[Tensor], bias: Tensor | None) -> Call:
    written: Outputs = {}
    return Call(lambda: written.update(sum=add_rows(terms, bias)), lambda: written)


def add_truth(terms: list[Tensor], bias: Tensor | None) -> Outputs:
    total = sum((term.double() for term in terms), terms[0].new_zeros((), dtype=torch.float64))
    return {"sum": (total if bias is None else total + bias.double()).to(terms[0].dtype)}


# --- rows of the catalogue ----------------------------------------------------------------------------------


def _norm(
    units: int, draws: int, sources: tuple[int, ...], groups: int, size: int | tuple[int, int], **more: Any
) -> Shape:
    size = (size, size) if isinstance(size, int) else size
    shape = {"units": units, "draws": draws, "sources": sources, "groups": groups, "size": size}
    return shape | {"added": False, "act": True, "plus": 1, "terms": 0, "out": 0} | more


NORM_SHAPES = (
    _norm(3, 2, (6,), 3, (5, 7), added=True, plus=0),
    _norm(2, 1, (24, 24), 4, 4, plus=2),  # 12 channels a group, one across the sources' border
    _norm(1, 3, (8, 16), 4, 9, act=False),
    _norm(2, 2, (64,), 8, 3, added=True, act=False, plus=2),  # few samples: two slices
    _norm(1, 1, (4,), 2, 1),
    _norm(2, 1, (12, 8), 2, 5, terms=2, out=12),  # too few samples for products in one program
)
NORM_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "units": (1, 3),
    "draws": (1, 4),
    "sources": ((8,), (16, 8), (64, 64)),
    "groups": (2, 4),
    "size": ((5, 5), (3, 50)),
    "added": (False, True),
    "act": (False, True),
    "plus": (0, 1),
    "terms": (0, 1, 2),
    "out": (0, 6, 20),
}
# With products in the program: from 16 positions a tile on, and enough samples that none is cut.
PRODUCT_SHAPES = (
    _norm(2, 2, (8, 16), 1, (5, 7), terms=2, added=True, out=20, plus=1),
    _norm(2, 1, (24,), 1, (4, 9), terms=1, out=6, plus=0),
)
PRODUCT_MAIN = (
    _norm(64, 8, (64, 64), 16, 28, terms=2, out=64, plus=1),
    _norm(64, 8, (128,), 32, 16, terms=1, added=True, out=128, plus=1),
)
# Not in the norm's kernel.
NARROW_MAIN = _norm(64, 8, (32, 32), 8, 32, terms=2, out=32)
NORM_MAIN = (
    _norm(64, 8, (64,), 16, 28, added=True, plus=0),
    _norm(64, 8, (64, 64), 16, 28),
    _norm(64, 8, (64, 32), 8, 32, plus=2),
    _norm(4, 1, (256, 256), 32, 16),
    _norm(64, 8, (64,), 16, 14, act=False, plus=2),
)


def _rows(samples: int, size: tuple[int, int], channels: int, **more: Any) -> Shape:
    return {"rows": (samples, *size, channels)} | more


ROWS: tuple[dict[str, Any], ...] = (
    {
        "name": "rows_norm_forward",
        "inputs": norm_inputs,
        "call": norm_forward_call,
        "reference": norm_forward_truth,
        "shapes": NORM_SHAPES,
        "choices": NORM_CHOICES,
        "main": NORM_MAIN,
    },
    {
        "name": "rows_norm",
        "inputs": norm_inputs,
        "call": norm_call,
        "reference": norm_truth,
        "shapes": NORM_SHAPES,
        "choices": NORM_CHOICES,
        "main": NORM_MAIN,
    },
    *(
        {
            "name": f"{name}_product",
            "inputs": norm_inputs,
            "call": call,
            "reference": truth,
            "shapes": PRODUCT_SHAPES,
            "choices": {**NORM_CHOICES, "groups": (1,), "out": (6, 20), "sources": ((8,), (16, 8))},
            "main": main,
            "dtypes": (torch.bfloat16,),
        }
        for name, call, truth, main in (
            ("rows_norm_forward", norm_forward_call, norm_forward_truth, (*PRODUCT_MAIN, NARROW_MAIN)),
            ("rows_norm", norm_call, norm_truth, PRODUCT_MAIN),
        )
    ),
    {
        "name": "rows_add",
        "inputs": add_inputs,
        "call": add_call,
        "reference": add_truth,
        "shapes": (_rows(3, (5, 7), 6, terms=2, bias=True), _rows(1, (1, 1), 1, terms=1, bias=False)),
        "choices": {"rows": ((2, 3, 3, 5), (3, 40, 20, 4)), "terms": (1, 2), "bias": (False, True)},
        "main": (_rows(512, (28, 28), 64, terms=2, bias=True), _rows(512, (28, 28), 64, terms=1, bias=True)),
    },
)
