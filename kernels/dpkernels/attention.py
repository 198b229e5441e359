"""Self-attention of several heads (Vaswani et al. 2017): O = softmax(QKᵀ/√d)·V, and its gradient.

With P = softmax(S), S = QKᵀ/√d, D = rowsum(∂O∘O) and ∂S = P∘(∂O·Vᵀ − D):
    ∂V = Pᵀ·∂O,  ∂Q = ∂S·K/√d,  ∂K = ∂Sᵀ·Q/√d
The kernels never write P: they recompute it from each row's log-sum-exp (Dao et al. 2022).
"""

import torch
from torch import Tensor

from dpkernels import attention_triton
from dpkernels.accumulate import widen
from dpkernels.device import use_triton


def attend(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return (O [N, T, C] of the dtype of qkv, log-sum-exp of each row of S [N, heads, T]). PRIVATE.

    qkv [N, T, 3C], contiguous: queries, keys and values side by side, each of `heads` heads of d = C/heads channels.
    """
    if use_triton(qkv):
        return attention_triton.attend(qkv, heads)
    query, key, value = _heads(widen(qkv), heads)
    scores = query.matmul(key.transpose(2, 3)) * query.shape[3] ** -0.5
    return _rows(scores.softmax(3).matmul(value)).to(qkv.dtype), scores.logsumexp(3)


def attend_backward(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor) -> Tensor:
    """Return the gradient of `qkv`, of its shape and dtype. PRIVATE. out and lse: what `attend` returned."""
    if use_triton(qkv):
        return attention_triton.attend_backward(qkv, out, lse, grad_out)
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
