"""Self-attention of several heads (Vaswani et al. 2017): O = softmax(QKᵀ/√d)·V, Y = X + O·Uᵀ + b, and its gradient.

With P = softmax(S), S = QKᵀ/√d, ∂O = ∂Y·U, D = rowsum(∂O∘O) and ∂S = P∘(∂O·Vᵀ − D):
    ∂V = Pᵀ·∂O,  ∂Q = ∂S·K/√d,  ∂K = ∂Sᵀ·Q/√d
Where Q, K and V are the tokens times Wᵀ, these have the gradient [∂Q ∂K ∂V]·W.
The kernels never write P: they recompute it from each row's log-sum-exp (Dao et al. 2022).
"""

import torch
from torch import Tensor

from dpkernels import attention_triton
from dpkernels.accumulate import widen
from dpkernels.device import use_triton
from dpkernels.rows import add_rows


def attend(qkv: Tensor, heads: int, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (O [N, T, C] of the dtype of qkv, log-sum-exp of each row of S [N, heads, T], Y shaped as x). PRIVATE.

    qkv [N, T, 3C], contiguous: queries, keys and values side by side, each of `heads` heads of d = C/heads channels;
    x: X, contiguous [N, H, W, C] with H·W = T; weight: U [C, C], of its dtype; bias [C].
    """
    if use_triton(qkv):
        if attention_triton.projects(qkv, heads):
            return attention_triton.attend(qkv, heads, (x, weight, bias))
        out, lse, _ = attention_triton.attend(qkv, heads, None)
    else:
        query, key, value = _heads(widen(qkv), heads)
        scores = query.matmul(key.transpose(2, 3)) * query.shape[3] ** -0.5
        out, lse = _rows(scores.softmax(3).matmul(value)).to(qkv.dtype), scores.logsumexp(3)
    return out, lse, add_rows((x, out.matmul(weight.t()).view_as(x)), bias)


def attend_backward(
    qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, weight: Tensor, in_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `qkv` [N, T, 3C] and of the tokens [N, T, C], of its dtype. PRIVATE.

    out and lse: what `attend` returned; grad_out: ∂Y [N, T, C]; weight: U; in_weight: W [3C, C].
    """
    if not use_triton(qkv):
        grad_qkv = _qkv_backward(qkv, out, lse, grad_out.matmul(weight))
    elif attention_triton.projects(qkv, lse.shape[1]):
        return attention_triton.attend_backward(qkv, out, lse, grad_out, (weight, in_weight))
    else:
        grad_qkv, _ = attention_triton.attend_backward(qkv, out, lse, grad_out.matmul(weight), None)
    return grad_qkv, grad_qkv.matmul(in_weight)


def _qkv_backward(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor) -> Tensor:
    """Return the gradient of `qkv` from that of O."""
    heads = lse.shape[1]
    query, key, value = _heads(widen(qkv), heads)
    scale = query.shape[3] ** -0.5
    weights = (query.matmul(key.transpose(2, 3)) * scale - lse[..., None]).exp()
    grad, result = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (widen(grad_out), widen(out)))
    towards = grad.matmul(value.transpose(2, 3)) - (grad * result).sum(3, keepdim=True)
    pulled = weights * towards * scale
    parts = (pulled.matmul(key), pulled.transpose(2, 3).matmul(query), weights.transpose(2, 3).matmul(grad))
    return torch.cat([_rows(part) for part in parts], 2).to(qkv.dtype)


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Return query, key and value, [N, heads, T, d] each."""
    return tuple(part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2))


def _rows(by_head: Tensor) -> Tensor:
    """Return [N, heads, T, d] as [N, T, C]."""
    return by_head.transpose(1, 2).flatten(2)
