"""Inputs, kernel calls and expected outputs of the catalogue's rows.

Three functions per kernel: `*_inputs` makes the arguments from a shape, `*_call` prepares outputs full of NaN and the
kernel's call on them, `*_truth` returns what must come out: batch-of-one autograd in fp64, or exact integer arithmetic.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpkernels.chacha import key_words, keystream, keystream_reference
from dpkernels.clip_sum_triton import add_scaled_rows, squared_row_norms
from dpkernels.conv2d_triton import Geometry, add_clipped_conv2d, conv2d_grads, conv2d_parts, conv2d_squares
from dpkernels.embedding_triton import embedding_grads, embedding_parts
from dpkernels.group_norm_triton import group_norm_forward, group_norm_input_and_unit_grads
from dpkernels.linear_triton import add_clipped_linear, linear_grads, linear_squares, shared_input_grads
from dpkernels.noise_step import gaussian_reference, noise_step, noise_step_reference

Shape = Mapping[str, Any]
Outputs = dict[str, Tensor]


class Call(NamedTuple):
    """A kernel's call on ready buffers: `launch` runs the kernel and nothing else, `outputs` returns what it wrote."""

    launch: Callable[[], None]
    outputs: Callable[[], Outputs]


def _per_unit(units: int, grads: Callable[[slice], tuple[Tensor, ...]], samples: int) -> tuple[Tensor, ...]:
    """Stack what `grads` returns for each unit's samples."""
    draws = samples // units
    parts = [grads(slice(unit * draws, (unit + 1) * draws)) for unit in range(units)]
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def _summed(scale: Tensor, *grads: Tensor) -> list[Tensor]:
    """Return Σ_b rint(scale[b]·grads[b]) of each tensor, int64; units of scale 0 are left out."""
    keep = scale != 0
    return [
        (g[keep] * scale[keep].double().view(-1, *[1] * (g.dim() - 1))).round().sum(0).long() for g in grads
    ]


def _square(*grads: Tensor) -> Tensor:
    return sum((g.double().flatten(1).square().sum(1) for g in grads), torch.tensor(0.0))


def _normal(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _storing(s: Shape) -> dict[str, Any]:
    """Return how gradients are stored, if the shape says so: the dtype, and whether they are added to what is there."""
    return {"stored": getattr(torch, s["stored"]), "accumulate": s["accumulate"]} if "stored" in s else {}


def _before(units: int, width: int, device: torch.device, stored: torch.dtype, accumulate: bool) -> Tensor:
    """Return a gradient buffer [B, width] before the launch: values to add to, or NaN that must be overwritten."""
    if not accumulate:
        return torch.full((units, width), torch.nan, dtype=stored, device=device)
    return torch.linspace(-2, 2, units * width, device=device).view(units, width).to(stored)


def _after(grads: Tensor, before: Tensor, accumulate: bool) -> Tensor:
    """Return what the buffer holds afterwards, given fp64 `grads`: rounded once if it is bf16."""
    result = grads + before.double() if accumulate else grads
    return result.to(before.dtype) if before.dtype == torch.bfloat16 else result


# --- conv2d -------------------------------------------------------------------------------------------------


def conv_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    k, size = s["kernel"], s["size"]
    geometry = Geometry((s["stride"],) * 2, (s["padding"],) * 2, (s.get("dilation", 1),) * 2)
    out_size = [(n + 2 * s["padding"] - geometry.dilation[0] * (k - 1) - 1) // s["stride"] + 1 for n in size]
    x = _normal(s["units"] * s["draws"], s["cin"], *size, dtype=dtype, device=device)
    g = _normal(s["units"] * s["draws"], s["cout"], *out_size, dtype=dtype, device=device)
    if s["layout"] == "channels_last":
        x, g = (
            x.contiguous(memory_format=torch.channels_last),
            g.contiguous(memory_format=torch.channels_last),
        )
    if s["layout"] == "view":  # every other column of a wider tensor
        x = torch.cat((x, x), 3)[..., ::2] if size[1] > 1 else x
    weight = (s["cout"], s["cin"], k, k)
    inputs = {"x": x, "grad_out": g, "weight": weight, "geometry": geometry, "units": s["units"]}
    return inputs | _storing(s)


def _conv_outputs(
    units: int, weight: tuple[int, ...], device: torch.device, stored: torch.dtype, accumulate: bool
) -> tuple[Tensor, Tensor]:
    """Return (weight, bias), views of one buffer with odd offsets and strides, like segments of G."""
    size = torch.Size(weight).numel()
    whole = _before(units, size + weight[0] + 3, device, stored, accumulate)
    return whole[:, 3 : 3 + size].unflatten(1, weight), whole[:, 3 + size :]


def conv_call(
    x: Tensor,
    grad_out: Tensor,
    weight: tuple[int, ...],
    geometry: Geometry,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    weight_out, bias_out = _conv_outputs(units, weight, x.device, stored, accumulate)
    squares = _parts(x.device, units, conv2d_parts(weight, True, x.dtype))
    return Call(
        lambda: conv2d_grads(x, grad_out, weight_out, bias_out, geometry, accumulate, squares),
        lambda: {"weight": weight_out, "bias": bias_out, "squares": squares.sum(1)},
    )


def _parts(device: torch.device, *shape: int) -> Tensor:
    """Return a buffer for the parts of squared norms."""
    return torch.full(shape, torch.nan, dtype=torch.float64, device=device)


def conv_truth(
    x: Tensor,
    grad_out: Tensor,
    weight: tuple[int, ...],
    geometry: Geometry,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        w = torch.zeros(weight, dtype=torch.float64, device=x.device, requires_grad=True)
        b = torch.zeros(weight[0], dtype=torch.float64, device=x.device, requires_grad=True)
        y = F.conv2d(x[samples].double(), w, b, *geometry)
        return torch.autograd.grad(y, (w, b), grad_out[samples].double())

    before = _conv_outputs(units, weight, x.device, stored, accumulate)
    w, b = (
        _after(g, old, accumulate) for g, old in zip(_per_unit(units, grads, len(x)), before, strict=True)
    )
    return {"weight": w, "bias": b, "squares": _square(w, b)}


def _scale(units: int, device: torch.device) -> Tensor:
    """Return factors to the grid, fp32 [B]; the second unit's is 0, so it adds nothing."""
    scale = 2.0**30 / torch.arange(1, units + 1, device=device)
    return torch.where(torch.arange(units, device=device) == 1, 0.0, scale)


def conv_recompute_call(
    x: Tensor, grad_out: Tensor, weight: tuple[int, ...], geometry: Geometry, units: int
) -> Call:
    squares = _parts(x.device, units, conv2d_parts(weight, True, x.dtype, recompute=True))
    total = torch.zeros(torch.Size(weight).numel() + weight[0], dtype=torch.int64, device=x.device)
    weight_total, bias_total = total[: -weight[0]].view(weight), total[-weight[0] :]
    scale = _scale(units, x.device)

    def launch() -> None:
        conv2d_squares(x, grad_out, weight, True, geometry, squares)
        add_clipped_conv2d(x, grad_out, scale, weight_total, bias_total, geometry)

    return Call(launch, lambda: {"weight": weight_total, "bias": bias_total, "squares": squares.sum(1)})


def conv_recompute_truth(**inputs: Any) -> Outputs:
    truth = conv_truth(**inputs)
    sums = _summed(_scale(inputs["units"], inputs["x"].device), truth["weight"], truth["bias"])
    return {"weight": sums[0], "bias": sums[1], "squares": truth["squares"]}


# --- linear -------------------------------------------------------------------------------------------------


def linear_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    between = () if s["positions"] is None else (s["positions"],)
    x = _normal(s["units"] * s["draws"], *between, s["cin"], dtype=dtype, device=device)
    g = _normal(s["units"] * s["draws"], *between, s["cout"], dtype=dtype, device=device)
    if s["layout"] == "transposed" and between:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    return {"x": x, "grad_out": g, "units": s["units"]} | _storing(s)


def linear_call(
    x: Tensor,
    grad_out: Tensor,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    weight = (grad_out.shape[-1], x.shape[-1], 1, 1)
    image_out, bias_out = _conv_outputs(units, weight, x.device, stored, accumulate)
    weight_out = image_out[..., 0, 0]
    squares = _parts(x.device, units, conv2d_parts(weight, True, x.dtype))
    return Call(
        lambda: linear_grads(x, grad_out, weight_out, bias_out, accumulate, squares),
        lambda: {"weight": weight_out, "bias": bias_out, "squares": squares.sum(1)},
    )


def linear_truth(
    x: Tensor,
    grad_out: Tensor,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        w = torch.zeros(
            grad_out.shape[-1], x.shape[-1], dtype=torch.float64, device=x.device, requires_grad=True
        )
        b = torch.zeros(grad_out.shape[-1], dtype=torch.float64, device=x.device, requires_grad=True)
        return torch.autograd.grad(F.linear(x[samples].double(), w, b), (w, b), grad_out[samples].double())

    weight = (grad_out.shape[-1], x.shape[-1])
    before = _conv_outputs(units, weight, x.device, stored, accumulate)
    w, b = (
        _after(g, old, accumulate) for g, old in zip(_per_unit(units, grads, len(x)), before, strict=True)
    )
    return {"weight": w, "bias": b, "squares": _square(w, b)}


def linear_recompute_call(x: Tensor, grad_out: Tensor, units: int) -> Call:
    weight_total = torch.zeros(grad_out.shape[-1], x.shape[-1], dtype=torch.int64, device=x.device)
    bias_total = torch.zeros(grad_out.shape[-1], dtype=torch.int64, device=x.device)
    squares, scale = _parts(x.device, units), _scale(units, x.device)

    def launch() -> None:
        squares.copy_(linear_squares(x, grad_out, units, True))
        add_clipped_linear(x, grad_out, scale, weight_total, bias_total)

    return Call(launch, lambda: {"weight": weight_total, "bias": bias_total, "squares": squares})


def linear_recompute_truth(x: Tensor, grad_out: Tensor, units: int) -> Outputs:
    truth = linear_truth(x, grad_out, units)
    sums = _summed(_scale(units, x.device), truth["weight"], truth["bias"])
    return {"weight": sums[0], "bias": sums[1], "squares": truth["squares"]}


def shared_call(
    x: Tensor,
    grad_out: Tensor,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,  # unused: no layer that is used twice takes this kernel
) -> Call:
    size = (grad_out.shape[-1], x.shape[-1], 1, 1)
    q, k, v = (_conv_outputs(units, size, x.device, stored, False) for _ in range(3))
    squares = _parts(x.device, 3, units, conv2d_parts(size, True, x.dtype))
    weights = (q[0][..., 0, 0], k[0][..., 0, 0], v[0][..., 0, 0])
    biases, grads = (q[1], k[1], v[1]), _three(grad_out)

    def outputs() -> Outputs:
        joined = {"weight": torch.cat(weights, 1), "bias": torch.cat(biases, 1)}
        return joined | {"squares": squares.sum((0, 2))}

    return Call(lambda: shared_input_grads(x, grads, weights, biases, squares), outputs)


def _three(grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return output gradients for query, key and value."""
    return grad_out, grad_out.flip(0), grad_out.neg()


def shared_truth(
    x: Tensor,
    grad_out: Tensor,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    truths = [linear_truth(x, grad, units, stored) for grad in _three(grad_out)]
    weight, bias = (torch.cat([truth[name] for truth in truths], 1) for name in ("weight", "bias"))
    return {"weight": weight, "bias": bias, "squares": _square(weight, bias)}


# --- group norm ---------------------------------------------------------------------------------------------


def norm_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    shape = (s["units"] * s["draws"], s["channels"], *s["size"])
    x, g = (_normal(*shape, dtype=dtype, device=device) for _ in range(2))
    x = x + 3  # a mean far from 0 exposes bad cancellation
    if s["layout"] == "channels_last" and len(s["size"]) == 2:
        x, g = (
            x.contiguous(memory_format=torch.channels_last),
            g.contiguous(memory_format=torch.channels_last),
        )
    by_group = x.double().reshape(len(x), s["groups"], -1)
    mean, rstd = by_group.mean(2), 1 / torch.sqrt(by_group.var(2, correction=0) + 1e-5)
    weight = _normal(s["channels"], dtype=torch.float32, device=device)
    statistics = {"mean": mean.float(), "rstd": rstd.float()}
    if "stored" in s:  # as in bf16 training, where the norm returns fp32
        g = g.float()
    return {"x": x, "grad_out": g, "weight": weight, "units": s["units"]} | statistics | _storing(s)


def norm_call(
    x: Tensor,
    grad_out: Tensor,
    weight: Tensor,
    units: int,
    mean: Tensor,
    rstd: Tensor,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    channels = x.shape[1]
    whole = _before(units, 2 * channels + 1, x.device, stored, accumulate)
    scale, shift = whole[:, 1 : 1 + channels], whole[:, 1 + channels :]
    squares = _parts(x.device, units, mean.shape[1])
    written: Outputs = {}

    def launch() -> None:
        written["x"] = group_norm_input_and_unit_grads(
            x, grad_out, mean, rstd, weight, scale, shift, accumulate, squares
        )

    return Call(launch, lambda: written | {"weight": scale, "bias": shift, "squares": squares.sum(1)})


def norm_truth(
    x: Tensor,
    grad_out: Tensor,
    weight: Tensor,
    units: int,
    mean: Tensor,
    rstd: Tensor,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        # contiguous: torch's own group_norm backward can crash on a CPU in channels_last.
        x_unit = x[samples].double().contiguous().requires_grad_()
        w = weight.double().requires_grad_()
        b = torch.zeros_like(w, requires_grad=True)
        y = F.group_norm(x_unit, mean.shape[1], w, b)
        return torch.autograd.grad(y, (x_unit, w, b), grad_out[samples].double())

    grad_x, *sums = _per_unit(units, grads, len(x))
    channels = x.shape[1]
    before = _before(units, 2 * channels + 1, x.device, stored, accumulate)[:, 1:].split(channels, 1)
    w, b = (_after(g, old, accumulate) for g, old in zip(sums, before, strict=True))
    return {"x": grad_x.flatten(0, 1).to(x.dtype), "weight": w, "bias": b, "squares": _square(w, b)}


def norm_forward_call(
    x: Tensor, grad_out: Tensor, weight: Tensor, units: int, mean: Tensor, rstd: Tensor
) -> Call:
    bias = weight + 1
    written: Outputs = {}

    def launch() -> None:
        y, mean_out, rstd_out = group_norm_forward(x, weight, bias, mean.shape[1], 1e-5, torch.float32)
        written.update(y=y, mean=mean_out, rstd=rstd_out)

    return Call(launch, lambda: written)


def norm_forward_truth(
    x: Tensor, grad_out: Tensor, weight: Tensor, units: int, mean: Tensor, rstd: Tensor
) -> Outputs:
    y = F.group_norm(x.double().contiguous(), mean.shape[1], weight.double(), (weight + 1).double())
    return {"y": y, "mean": mean, "rstd": rstd}


# --- embedding ----------------------------------------------------------------------------------------------


def embedding_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    pairs = torch.randint(s["rows"], (s["units"] * s["draws"], 2), device=device)
    index = pairs[:, 1]  # a strided view, as a caller's may be
    grad = _normal(len(index), s["width"], dtype=dtype, device=device)
    inputs = {
        "index": index,
        "grad_out": grad,
        "rows": s["rows"],
        "padding": s["padding"],
        "units": s["units"],
    }
    return inputs | _storing(s)


def embedding_call(
    index: Tensor,
    grad_out: Tensor,
    rows: int,
    padding: int | None,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Call:
    width = grad_out.shape[1]
    out = _before(units, rows * width + 1, grad_out.device, stored, accumulate)[:, 1:]
    out = out.unflatten(1, (rows, width))
    squares = _parts(grad_out.device, units, embedding_parts(rows, width))
    return Call(
        lambda: embedding_grads(index, grad_out, out, padding, accumulate, squares),
        lambda: {"weight": out, "squares": squares.sum(1)},
    )


def embedding_truth(
    index: Tensor,
    grad_out: Tensor,
    rows: int,
    padding: int | None,
    units: int,
    stored: torch.dtype = torch.float32,
    accumulate: bool = False,
) -> Outputs:
    def grads(samples: slice) -> tuple[Tensor, ...]:
        w = torch.zeros(
            rows, grad_out.shape[1], dtype=torch.float64, device=grad_out.device, requires_grad=True
        )
        return torch.autograd.grad(F.embedding(index[samples], w, padding), (w,), grad_out[samples].double())

    (w,) = _per_unit(units, grads, len(index))
    before = _before(units, rows * grad_out.shape[1] + 1, grad_out.device, stored, accumulate)[:, 1:]
    w = _after(w, before.unflatten(1, w.shape[1:]), accumulate)
    return {"weight": w, "squares": _square(w)}


# --- end of a step -----------------------------------------------------------------------------------------


def clip_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    grads = _normal(s["units"], s["count"], dtype=dtype, device=device)
    return {"grads": grads, "scale": _scale(s["units"], grads.device)}


def clip_call(grads: Tensor, scale: Tensor) -> Call:
    total = torch.arange(grads.shape[1], device=grads.device)
    squares = _parts(grads.device, len(grads))

    def launch() -> None:
        add_scaled_rows(grads, scale, total)
        squares.copy_(squared_row_norms(grads))

    return Call(launch, lambda: {"total": total, "squares": squares})


def clip_truth(grads: Tensor, scale: Tensor) -> Outputs:
    wide = grads.float() * scale[:, None]
    total = torch.arange(grads.shape[1], device=grads.device) + wide.round().long().sum(0)
    return {"total": total, "squares": _square(grads)}


def stream_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    return {"key": bytes(range(32)), "blocks": s["blocks"], "first": s["first"], "device": device}


def stream_call(key: bytes, blocks: int, first: int, device: str) -> Call:
    written: Outputs = {}
    return Call(lambda: written.update(words=keystream(key, blocks, first, device)), lambda: written)


def stream_truth(key: bytes, blocks: int, first: int, device: str) -> Outputs:
    return {"words": keystream_reference(key_words(key, device), blocks, first)}


BUFFERS = ("weights", "exp_avg", "exp_avg_sq", "ema")


def step_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    buffers = {name: torch.rand(s["count"], device=device) for name in BUFFERS}
    total = torch.randint(-(2**36), 2**36, (s["count"],), device=device)
    return {"total": total, "buffers": buffers, "step": s["step"]}


def step_call(total: Tensor, buffers: dict[str, Tensor], step: int) -> Call:
    total, new = _copies(total, buffers)
    state, key = SimpleNamespace(**new), bytes(range(32))
    return Call(
        lambda: noise_step(total, key, 1.5, 0.7, 3.0, state, step, 1e-3, 0.99),
        lambda: new | {"total": total},
    )


def step_truth(total: Tensor, buffers: dict[str, Tensor], step: int) -> Outputs:
    total, new = _copies(total, buffers)
    noise = gaussian_reference(key_words(bytes(range(32)), total.device), len(total))
    to_gradient = 0.7 / 2.0**36 / 3.0
    noise_step_reference(total, noise, 1.5, to_gradient, SimpleNamespace(**new), step, 1e-3, 0.99)
    return new | {"total": total}


def _copies(total: Tensor, buffers: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return total.clone(), {name: buffer.clone() for name, buffer in buffers.items()}
