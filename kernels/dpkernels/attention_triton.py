"""Triton kernels of `attention`: one pass each way, each of whose programs alone writes its results.

A program owns a tile of tokens. The forward loops over keys; the backward first over keys, for the queries' gradient
(∂Q), then over queries, for that of the keys and values (∂K, ∂V): a sample is small enough to be still in cache.
Nothing is added atomically, for any number of tokens, so a step repeats to the bit.

With a single head of few channels a program holds complete tokens, and multiplies by the projections around the
attention as well.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.device import INTERPRETER
from dpkernels.rows_triton import require_rows

# Channels of a single head up to which the projections' weights stay in a program.
PROJECTED = 64


class Head(NamedTuple):
    """The sizes of a launch, compiled in. width: channels of a head, padded to `block`."""

    tokens: int
    heads: int
    width: int
    block: int
    project: bool
    # The interpreter would multiply bf16 bit patterns as integers.
    upcast: bool


def projects(qkv: Tensor, heads: int) -> bool:
    """Return whether the kernels multiply by the projections as well."""
    narrow = qkv.shape[2] // 3 <= PROJECTED
    return heads == 1 and narrow and qkv.dtype in (torch.bfloat16, torch.float16)


def attend(
    qkv: Tensor, heads: int, residual: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `attention.attend` does; residual: its last arguments, without which there is no Y."""
    require_rows(qkv)
    samples, tokens, channels = len(qkv), qkv.shape[1], qkv.shape[2] // 3
    out = torch.empty(samples, tokens, channels, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(samples, heads, tokens, device=qkv.device)
    # Unused pointer arguments must still be tensors: the output stands in.
    x, weight, bias = residual or (out, out, out)
    require_rows(x)
    total = out if residual is None else torch.empty_like(x)
    head, size, warps = _sizes(qkv, heads, residual is not None)
    _attend_kernel[(triton.cdiv(tokens, size), samples * heads)](
        *(qkv, x, weight.contiguous(), bias, out, total, lse, head.width**-0.5, head, size, size),
        num_warps=warps,
        num_stages=2,
    )
    return out, lse, total


def attend_backward(
    qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, weights: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return what `attention.attend_backward` does; without weights, whose gradient is given is O, not Y."""
    require_rows(qkv, out, lse)
    heads = lse.shape[1]
    grad_qkv = torch.empty_like(qkv)
    weight, in_weight = (part.contiguous() for part in weights or (out, out))
    grad_tokens = out if weights is None else torch.empty_like(out)
    head, size, warps = _sizes(qkv, heads, weights is not None)
    _attend_backward_kernel[(triton.cdiv(qkv.shape[1], size), len(qkv) * heads)](
        *(qkv, out, grad_out.contiguous(), lse, weight, in_weight, grad_qkv, grad_tokens),
        *(head.width**-0.5, head, size),
        num_warps=warps,
        num_stages=1,
    )
    return grad_qkv, grad_tokens


def _sizes(qkv: Tensor, heads: int, project: bool) -> tuple[Head, int, int]:
    """Return the sizes, the tokens of a tile and the number of warps; chosen so that nothing spills, not measured."""
    width = qkv.shape[2] // 3 // heads
    head = Head(qkv.shape[1], heads, width, max(16, triton.next_power_of_2(width)), project, INTERPRETER)
    narrow = qkv.dtype != torch.float32
    size = (64 if head.block <= 128 else 32) if narrow else (32 if head.block <= 64 else 16)
    return head, size, 4 if head.block <= (64 if narrow else 32) else 8


@triton.jit
def _attend_kernel(
    qkv: tl.tensor,  # [N, T, 3, heads, width]
    x: tl.tensor,  # [N, T, C]
    weight: tl.tensor,  # [C, C]
    bias: tl.tensor,  # [C]
    out: tl.tensor,  # [N, T, heads, width]
    total: tl.tensor,  # [N, T, C]
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
    share = tl.zeros((QUERIES,), dtype=tl.float32)
    acc = tl.zeros((QUERIES, BLOCK), dtype=tl.float32)
    for start in range(0, TOKENS, KEYS):
        k_row = start + tl.arange(0, KEYS)
        key, value = _tile(qkv, k_row, 1, 3, H), _tile(qkv, k_row, 2, 3, H)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where((k_row < TOKENS)[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        part, fade = tl.exp(scores - higher[:, None]), tl.exp(best - higher)
        share = share * fade + tl.sum(part, 1)
        acc = tl.dot(part.to(value.dtype), value, acc * fade[:, None], input_precision="ieee")
        best = higher
    mixed = acc / share[:, None]
    _store(out, mixed, q_row, 0, 1, H)
    tl.store(lse + tl.program_id(1).to(tl.int64) * TOKENS + q_row, best + tl.log(share), mask=q_row < TOKENS)
    if H.project:
        column = tl.arange(0, BLOCK)
        level = tl.load(bias + column, mask=column < H.width, other=0.0).to(tl.float32)
        result = _tile(x, q_row, 0, 1, H).to(tl.float32) + level[None, :]
        mixed = mixed if H.upcast else mixed.to(out.dtype.element_ty)
        result = tl.dot(mixed, tl.trans(_square(weight, 0, H)), result, input_precision="ieee")
        _store(total, result, q_row, 0, 1, H)


@triton.jit
def _attend_backward_kernel(
    qkv: tl.tensor,  # [N, T, 3, heads, width]
    out: tl.tensor,  # [N, T, heads, width]
    g: tl.tensor,  # as out
    lse: tl.tensor,  # fp32 [N, heads, T]
    weight: tl.tensor,  # [C, C]
    in_weight: tl.tensor,  # [3, C, C]
    grad: tl.tensor,  # as qkv
    grad_tokens: tl.tensor,  # [N, T, C]
    scale: tl.tensor,
    H: tl.constexpr,
    TILE: tl.constexpr,  # tokens
) -> None:
    """Program (tile of tokens, head of a sample): their gradients as queries, then as keys and values."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    _queries_backward(qkv, out, g, lse, weight, grad, row, scale, H, TILE)
    # Half a tile of queries at a time keeps the projections' products within sm_80's registers.
    QUERIES: tl.constexpr = TILE // 2 if H.project else TILE
    _keys_backward(qkv, out, g, lse, weight, grad, row, scale, H, QUERIES)
    if H.project:
        tl.debug_barrier()  # read as other threads wrote them
        BLOCK: tl.constexpr = H.block
        acc = tl.zeros((TILE, BLOCK), dtype=tl.float32)
        for number in range(3):
            part = _tile(grad, row, number, 3, H)
            acc = tl.dot(part, _square(in_weight, number, H), acc, input_precision="ieee")
        _store(grad_tokens, acc, row, 0, 1, H)


@triton.jit
def _queries_backward(
    qkv: tl.tensor,
    out: tl.tensor,
    g: tl.tensor,
    lse: tl.tensor,
    weight: tl.tensor,
    grad: tl.tensor,
    q_row: tl.tensor,
    scale: tl.tensor,
    H: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Store the gradient of a tile of queries."""
    TOKENS: tl.constexpr = H.tokens
    query, grad_out = _tile(qkv, q_row, 0, 3, H), _gradient(g, weight, q_row, H)
    turn = tl.sum(grad_out.to(tl.float32) * _tile(out, q_row, 0, 1, H).to(tl.float32), 1)
    statistic = tl.program_id(1).to(tl.int64) * TOKENS + q_row
    level = tl.load(lse + statistic, mask=q_row < TOKENS, other=0.0)
    acc = tl.zeros_like(query).to(tl.float32)
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
def _keys_backward(
    qkv: tl.tensor,
    out: tl.tensor,
    g: tl.tensor,
    lse: tl.tensor,
    weight: tl.tensor,
    grad: tl.tensor,
    k_row: tl.tensor,
    scale: tl.tensor,
    H: tl.constexpr,
    QUERIES: tl.constexpr,
) -> None:
    """Store the gradients of a tile of keys and values."""
    TOKENS: tl.constexpr = H.tokens
    key, value = _tile(qkv, k_row, 1, 3, H), _tile(qkv, k_row, 2, 3, H)
    key_acc = tl.zeros_like(key).to(tl.float32)
    value_acc = tl.zeros_like(key_acc)
    for start in range(0, TOKENS, QUERIES):
        q_row = start + tl.arange(0, QUERIES)
        query, grad_out = _tile(qkv, q_row, 0, 3, H), _gradient(g, weight, q_row, H)
        turn = tl.sum(grad_out.to(tl.float32) * _tile(out, q_row, 0, 1, H).to(tl.float32), 1)
        statistic = tl.program_id(1).to(tl.int64) * TOKENS + q_row
        level = tl.load(lse + statistic, mask=q_row < TOKENS, other=0.0)
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
        part = tl.where((q_row < TOKENS)[None, :], tl.exp(scores - level[None, :]), 0.0)
        value_acc = tl.dot(part.to(grad_out.dtype), grad_out, value_acc, input_precision="ieee")
        towards = tl.dot(value, tl.trans(grad_out), input_precision="ieee")
        pulled = part * (towards - turn[None, :])
        key_acc = tl.dot(pulled.to(query.dtype), query, key_acc, input_precision="ieee")
    _store(grad, key_acc * scale, k_row, 1, 3, H)
    _store(grad, value_acc, k_row, 2, 3, H)


@triton.jit
def _gradient(g: tl.tensor, weight: tl.tensor, row: tl.tensor, H: tl.constexpr) -> tl.tensor:
    """Return a tile of the gradient of the heads' output, as products take it."""
    tile = _tile(g, row, 0, 1, H)
    if H.project:
        product = tl.dot(tile, _square(weight, 0, H), input_precision="ieee")
        tile = product if H.upcast else product.to(g.dtype.element_ty)
    return tile


@triton.jit
def _square(weight: tl.tensor, number: tl.tensor, H: tl.constexpr) -> tl.tensor:
    """Return projection `number` of a weight [..., C, C], 0 beyond the last channel, as products take it."""
    channel = tl.arange(0, H.block)
    inside = (channel < H.width)[:, None] & (channel < H.width)[None, :]
    place = ((number * H.width + channel) * H.width)[:, None] + channel[None, :]
    tile = tl.load(weight + place, mask=inside, other=0.0)
    return tile.to(tl.float32) if H.upcast else tile


@triton.jit
def _places(row: tl.tensor, number: tl.tensor, PARTS: tl.constexpr, H: tl.constexpr) -> tl.tensor:
    """Return offsets [tokens, block] of part `number` of this program's head, in [N, T, PARTS, heads, width]."""
    sample, head = tl.program_id(1).to(tl.int64) // H.heads, tl.program_id(1) % H.heads
    begin = sample * (H.tokens * PARTS * H.heads * H.width) + (number * H.heads + head) * H.width
    return begin + row[:, None] * (PARTS * H.heads * H.width) + tl.arange(0, H.block)[None, :]


@triton.jit
def _tile(
    tensor: tl.tensor, row: tl.tensor, number: tl.tensor, PARTS: tl.constexpr, H: tl.constexpr
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
    number: tl.tensor,
    PARTS: tl.constexpr,
    H: tl.constexpr,
) -> None:
    """Store a tile of tokens, rounded to the tensor's dtype."""
    mask = (row < H.tokens)[:, None] & (tl.arange(0, H.block) < H.width)[None, :]
    tl.store(tensor + _places(row, number, PARTS, H), tile.to(tensor.dtype.element_ty), mask=mask)
