"""Triton kernels of `attention`: three passes, each of whose programs alone writes its results.

The forward owns queries and loops over keys; the backward has one kernel that owns queries (∂Q) and one that owns keys
(∂K, ∂V). Nothing is added atomically, for any number of tokens, so a step repeats to the bit.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.device import INTERPRETER
from dpkernels.rows_triton import require_rows


class Head(NamedTuple):
    """The sizes of a launch, compiled in. width: channels of a head, padded to `block`."""

    tokens: int
    heads: int
    width: int
    block: int
    # The interpreter would multiply bf16 bit patterns as integers.
    upcast: bool


def attend(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return what `attention.attend` does."""
    require_rows(qkv)
    samples, tokens, channels = len(qkv), qkv.shape[1], qkv.shape[2] // 3
    out = torch.empty(samples, tokens, channels, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(samples, heads, tokens, device=qkv.device)
    head, size, warps = _sizes(qkv, heads)
    _attend_kernel[(triton.cdiv(tokens, size), samples * heads)](
        *(qkv, out, lse, head.width**-0.5, head, size, size), num_warps=warps, num_stages=2
    )
    return out, lse


def attend_backward(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor) -> Tensor:
    """Return what `attention.attend_backward` does."""
    require_rows(qkv, out, lse)
    heads = lse.shape[1]
    grad_qkv, turns = torch.empty_like(qkv), torch.empty_like(lse)
    head, size, warps = _sizes(qkv, heads)
    grid = (triton.cdiv(qkv.shape[1], size), len(qkv) * heads)
    options = {"num_warps": warps, "num_stages": 1}
    operands = (qkv, grad_out.contiguous(), lse, turns, grad_qkv, head.width**-0.5, head, size, size)
    _queries_kernel[grid](out, *operands, **options)
    _keys_kernel[grid](*operands, **options)
    return grad_qkv


def _sizes(qkv: Tensor, heads: int) -> tuple[Head, int, int]:
    """Return the sizes, the tokens of a tile and the number of warps; chosen so that nothing spills, not measured."""
    width = qkv.shape[2] // 3 // heads
    head = Head(qkv.shape[1], heads, width, max(16, triton.next_power_of_2(width)), INTERPRETER)
    narrow = qkv.dtype != torch.float32
    size = (64 if head.block <= 128 else 32) if narrow else (32 if head.block <= 64 else 16)
    return head, size, 4 if head.block <= (64 if narrow else 32) else 8


@triton.jit
def _attend_kernel(
    qkv: tl.tensor,  # [N, T, 3, heads, width]
    out: tl.tensor,  # [N, T, heads, width]
    lse: tl.tensor,  # fp32 [N, heads, T]
    scale: tl.tensor,
    H: tl.constexpr,  # Head
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Program (tile of queries, head of a sample): softmax in one pass over the keys (Milakov and Gimelshein 2018)."""
    BLOCK: tl.constexpr = H.block
    TOKENS: tl.constexpr = H.tokens
    q_row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    query = _tile(qkv, q_row, 0, 3, H)
    best = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((QUERIES,), dtype=tl.float32)
    acc = tl.zeros((QUERIES, BLOCK), dtype=tl.float32)
    for start in range(0, TOKENS, KEYS):
        k_row = start + tl.arange(0, KEYS)
        key, value = _tile(qkv, k_row, 1, 3, H), _tile(qkv, k_row, 2, 3, H)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where((k_row < TOKENS)[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        part, fade = tl.exp(scores - higher[:, None]), tl.exp(best - higher)
        weight = weight * fade + tl.sum(part, 1)
        acc = tl.dot(part.to(value.dtype), value, acc * fade[:, None], input_precision="ieee")
        best = higher
    _store(out, acc / weight[:, None], q_row, 0, 1, H)
    tl.store(lse + tl.program_id(1).to(tl.int64) * TOKENS + q_row, best + tl.log(weight), mask=q_row < TOKENS)


@triton.jit
def _queries_kernel(
    out: tl.tensor,  # [N, T, heads, width]
    qkv: tl.tensor,  # [N, T, 3, heads, width]
    g: tl.tensor,  # as out
    lse: tl.tensor,  # fp32 [N, heads, T]
    turns: tl.tensor,  # fp32 [N, heads, T]: D, written here for _keys_kernel
    grad: tl.tensor,  # as qkv
    scale: tl.tensor,
    H: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Program (tile of queries, head of a sample): D and the gradient of the queries."""
    BLOCK: tl.constexpr = H.block
    TOKENS: tl.constexpr = H.tokens
    q_row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    statistic = tl.program_id(1).to(tl.int64) * TOKENS + q_row
    query, grad_out = _tile(qkv, q_row, 0, 3, H), _tile(g, q_row, 0, 1, H)
    turn = tl.sum(grad_out.to(tl.float32) * _tile(out, q_row, 0, 1, H).to(tl.float32), 1)
    tl.store(turns + statistic, turn, mask=q_row < TOKENS)
    level = tl.load(lse + statistic, mask=q_row < TOKENS, other=0.0)
    acc = tl.zeros((QUERIES, BLOCK), dtype=tl.float32)
    for start in range(0, TOKENS, KEYS):
        k_row = start + tl.arange(0, KEYS)
        key, value = _tile(qkv, k_row, 1, 3, H), _tile(qkv, k_row, 2, 3, H)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        part = tl.where((k_row < TOKENS)[None, :], tl.exp(scores - level[:, None]), 0.0)
        towards = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
        pulled = part * (towards - turn[:, None])
        acc = tl.dot(pulled.to(key.dtype), key, acc, input_precision="ieee")
    _store(grad, acc * scale, q_row, 0, 3, H)


@triton.jit
def _keys_kernel(
    qkv: tl.tensor,  # as in _queries_kernel
    g: tl.tensor,
    lse: tl.tensor,
    turns: tl.tensor,
    grad: tl.tensor,
    scale: tl.tensor,
    H: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Program (tile of keys, head of a sample): the gradients of the keys and values."""
    BLOCK: tl.constexpr = H.block
    TOKENS: tl.constexpr = H.tokens
    k_row = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    key, value = _tile(qkv, k_row, 1, 3, H), _tile(qkv, k_row, 2, 3, H)
    key_acc = tl.zeros((KEYS, BLOCK), dtype=tl.float32)
    value_acc = tl.zeros((KEYS, BLOCK), dtype=tl.float32)
    for start in range(0, TOKENS, QUERIES):
        q_row = start + tl.arange(0, QUERIES)
        statistic = tl.program_id(1).to(tl.int64) * TOKENS + q_row
        query, grad_out = _tile(qkv, q_row, 0, 3, H), _tile(g, q_row, 0, 1, H)
        level = tl.load(lse + statistic, mask=q_row < TOKENS, other=0.0)
        turn = tl.load(turns + statistic, mask=q_row < TOKENS, other=0.0)
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
        part = tl.where((q_row < TOKENS)[None, :], tl.exp(scores - level[None, :]), 0.0)
        value_acc = tl.dot(part.to(grad_out.dtype), grad_out, value_acc, input_precision="ieee")
        towards = tl.dot(value, tl.trans(grad_out), input_precision="ieee")
        pulled = part * (towards - turn[None, :])
        key_acc = tl.dot(pulled.to(query.dtype), query, key_acc, input_precision="ieee")
    _store(grad, key_acc * scale, k_row, 1, 3, H)
    _store(grad, value_acc, k_row, 2, 3, H)


@triton.jit
def _places(row: tl.tensor, number: tl.constexpr, PARTS: tl.constexpr, H: tl.constexpr) -> tl.tensor:
    """Return offsets [tokens, block] of part `number` of this program's head, in [N, T, PARTS, heads, width]."""
    sample, head = tl.program_id(1).to(tl.int64) // H.heads, tl.program_id(1) % H.heads
    begin = sample * (H.tokens * PARTS * H.heads * H.width) + (number * H.heads + head) * H.width
    return begin + row[:, None] * (PARTS * H.heads * H.width) + tl.arange(0, H.block)[None, :]


@triton.jit
def _tile(
    tensor: tl.tensor, row: tl.tensor, number: tl.constexpr, PARTS: tl.constexpr, H: tl.constexpr
) -> tl.tensor:
    """Return a tile of tokens, 0 beyond the last token and channel."""
    mask = (row < H.tokens)[:, None] & (tl.arange(0, H.block) < H.width)[None, :]
    tile = tl.load(tensor + _places(row, number, PARTS, H), mask=mask, other=0.0)
    return tile.to(tl.float32) if H.upcast else tile


@triton.jit
def _store(
    tensor: tl.tensor,
    tile: tl.tensor,
    row: tl.tensor,
    number: tl.constexpr,
    PARTS: tl.constexpr,
    H: tl.constexpr,
) -> None:
    """Store a tile of tokens, rounded to the tensor's dtype."""
    mask = (row < H.tokens)[:, None] & (tl.arange(0, H.block) < H.width)[None, :]
    tl.store(tensor + _places(row, number, PARTS, H), tile.to(tensor.dtype.element_ty), mask=mask)
