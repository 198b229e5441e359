"""Self-attention: inputs, call and expected outputs, and its row of the catalogue."""

from typing import Any

import torch
from torch import Tensor

from dpkernels.attention import attend, attend_backward
from dpkernels.examples import Call, Outputs, Shape


def _normal(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def attention_inputs(s: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    sizes = s["samples"], s["tokens"], s["heads"] * s["width"]
    return {
        "qkv": _normal(*sizes[:2], 3 * sizes[2], dtype=dtype, device=device),
        "heads": s["heads"],
        "x": _normal(sizes[0], sizes[1], 1, sizes[2], dtype=dtype, device=device),
        "grad_out": _normal(*sizes, dtype=dtype, device=device),
        "weights": {
            "out": _normal(sizes[2], sizes[2], dtype=dtype, device=device),
            "in": _normal(3 * sizes[2], sizes[2], dtype=dtype, device=device),
            "bias": _normal(sizes[2], dtype=torch.float32, device=device),
        },
    }


def attention_call(qkv: Tensor, heads: int, x: Tensor, grad_out: Tensor, weights: dict[str, Tensor]) -> Call:
    written: Outputs = {}

    def launch() -> None:
        out, lse, total = attend(qkv, heads, x, weights["out"], weights["bias"])
        grads = attend_backward(qkv, out, lse, grad_out, weights["out"], weights["in"])
        written.update(out=out, lse=lse, total=total, qkv=grads[0], tokens=grads[1])

    return Call(launch, lambda: written)


def attention_truth(
    qkv: Tensor, heads: int, x: Tensor, grad_out: Tensor, weights: dict[str, Tensor]
) -> Outputs:
    wide = qkv.double().requires_grad_()
    query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in wide.chunk(3, 2))
    scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
    out = (scores.softmax(3) @ value).transpose(1, 2).flatten(2)
    total = x.double().flatten(1, 2) + out @ weights["out"].double().t() + weights["bias"].double()
    (grad,) = torch.autograd.grad(total, wide, grad_out.double())
    found = {"out": out, "total": total.view_as(x), "qkv": grad, "tokens": grad @ weights["in"].double()}
    lse = scores.logsumexp(3).detach()
    return {name: value.detach().to(qkv.dtype) for name, value in found.items()} | {"lse": lse}


def _attention(samples: int, tokens: int, heads: int, width: int) -> Shape:
    return {"samples": samples, "tokens": tokens, "heads": heads, "width": width}


ROWS: tuple[dict[str, Any], ...] = (
    {
        "name": "attention",
        "inputs": attention_inputs,
        "call": attention_call,
        "reference": attention_truth,
        "shapes": (_attention(2, 70, 2, 12), _attention(3, 5, 1, 20), _attention(1, 130, 1, 4)),
        "choices": {"samples": (1, 3), "tokens": (1, 9, 65), "heads": (1, 2), "width": (4, 17)},
        "main": (
            _attention(512, 196, 1, 64),
            _attention(512, 256, 2, 32),
            _attention(64, 1024, 1, 128),
            _attention(64, 256, 1, 256),
        ),
    },
)
