"""The end of a DP-SGD step in one pass over the flat buffers: noise, scale, Adam, EMA, bf16 copy, zeroing.

    noisy = n + rint(σ·2³⁶·z)           z standard normal, from ChaCha20 (design D1, D3.5)
    g     = noisy·C/2³⁶ / expected      the expected batch is public, never the realised one (D3.6)
    Adam (Kingma and Ba 2015, eq. 1-4 of algorithm 1), then ema ← d·ema + (1−d)·w

Reads and writes 48 bytes a parameter, 50 with the copy. All buffers are contiguous, [P], in one order.
"""

import math
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.chacha import (
    NORMALS_PER_BLOCK,
    chacha_normals,
    check_counter,
    key_words,
    keystream_reference,
    normals_reference,
)
from dpkernels.device import CHACHA_BLOCKS, use_triton
from dpkernels.grid import GRID, rint

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
# √(2 ln 2⁶⁵) = 9.493: no normal is farther out.
MAX_NORMAL = 9.5


class Buffers(Protocol):
    """What a step changes, fp32 [P] each."""

    weights: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    ema: Tensor


def noise_step(
    total: Tensor,
    key: bytes,
    noise_multiplier: float,
    clip_norm: float,
    expected_units: float,
    buffers: Buffers,
    step: int,
    learning_rate: float,
    ema_decay: float,
) -> None:
    """Updates `buffers` in place by the un-noised sum `total` int64 [P] (PRIVATE), which becomes zero.

    key: 32 bytes that no other sum may ever meet (PRIVATE). step counts from 0. Call it once per step and rank: all
    ranks with the same total and key get the same weights. ValueError: a key of another length, P beyond the
    keystream's counter, or a noise multiplier whose noise a float64 does not hold exactly on the grid. TypeError: a
    sum that is not one flat int64.
    """
    if total.dtype != torch.int64 or total.dim() != 1:
        raise TypeError(f"noise is added to one flat int64 sum, not to {total.dtype} {tuple(total.shape)}")
    if not 0 < noise_multiplier * MAX_NORMAL * GRID < 2.0**53:
        raise ValueError(
            f"noise multiplier {noise_multiplier}: no noise, or more than the grid holds exactly"
        )
    if not expected_units > 0:
        raise ValueError(f"the expected batch is {expected_units} units; it must be above 0")
    blocks = triton.cdiv(total.numel(), NORMALS_PER_BLOCK)
    check_counter(0, blocks)
    words = key_words(key, total.device)
    to_gradient = clip_norm / GRID / expected_units
    if not use_triton(total):
        noise = gaussian_reference(words, total.numel())
        noise_step_reference(
            total, noise, noise_multiplier, to_gradient, buffers, step, learning_rate, ema_decay
        )
        return
    scalars = _scalars(noise_multiplier * GRID, to_gradient, step, learning_rate, ema_decay, total.device)
    _noise_step_kernel[(triton.cdiv(blocks, CHACHA_BLOCKS),)](
        *(total, words, scalars, buffers.weights, buffers.exp_avg, buffers.exp_avg_sq, buffers.ema),
        total.numel(),
        *(BETA1, BETA2, EPS, CHACHA_BLOCKS),
        num_warps=4,
        enable_fp_fusion=False,
    )


def noise_step_reference(
    total: Tensor,
    noise: Tensor,
    noise_multiplier: float,
    to_gradient: float,
    buffers: Buffers,
    step: int,
    learning_rate: float,
    ema_decay: float,
) -> None:
    """`noise_step` in torch with given standard normals `noise` float64 [P]."""
    noisy = total + (noise * (noise_multiplier * GRID)).round().to(torch.int64)
    gradient = (noisy.double() * to_gradient).float()
    adam_step(gradient, buffers, step, learning_rate, ema_decay)
    total.zero_()


def adam_step(gradient: Tensor, buffers: Buffers, step: int, learning_rate: float, ema_decay: float) -> None:
    """One Adam step and the EMA, in place, from a gradient fp32 [P]; step counts from 0. In torch."""
    count = step + 1
    buffers.exp_avg.lerp_(gradient, 1 - BETA1)
    buffers.exp_avg_sq.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    width = buffers.exp_avg_sq.sqrt().div_(math.sqrt(1 - BETA2**count)).add_(EPS)
    buffers.weights.addcdiv_(buffers.exp_avg, width, value=-learning_rate / (1 - BETA1**count))
    buffers.ema.lerp_(buffers.weights, 1 - ema_decay)


def gaussian_reference(words: Tensor, count: int) -> Tensor:
    """Standard normals float64 [count] of the key whose words are int32 [8]. PRIVATE."""
    blocks = keystream_reference(words, triton.cdiv(count, NORMALS_PER_BLOCK))
    return normals_reference(blocks).flatten()[:count]


def _scalars(
    noise_scale: float,
    to_gradient: float,
    step: int,
    learning_rate: float,
    ema_decay: float,
    device: torch.device,
) -> Tensor:
    """The step's numbers, float64 [5] on the device: as arguments they would be cut to fp32."""
    count = step + 1
    rate, root = learning_rate / (1 - BETA1**count), math.sqrt(1 - BETA2**count)
    values = [noise_scale, to_gradient, rate, root, 1 - ema_decay]
    return torch.tensor(values, dtype=torch.float64, device=device)


@triton.jit
def _noise_step_kernel(
    total: tl.tensor,  # int64 [P]
    key: tl.tensor,  # int32 [8]
    scalars: tl.tensor,  # float64 [5], see _scalars
    weights: tl.tensor,  # fp32 [P], as the next three
    exp_avg: tl.tensor,
    exp_avg_sq: tl.tensor,
    ema: tl.tensor,
    count: tl.tensor,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    place = block.to(tl.int64)[:, None] * 8 + tl.arange(0, 8)[None, :]
    noise = rint(chacha_normals(key, block.to(tl.uint32)) * tl.load(scalars)).to(tl.int64)

    # A mask that is constant over a block's eight parameters lets loads and stores be wide; the last block,
    # where it is not whole, is done by itself.
    whole = (block < count // 8)[:, None] & (tl.arange(0, 8) < 8)[None, :]
    _update(total, noise, scalars, weights, exp_avg, exp_avg_sq, ema, place, whole, BETA1, BETA2, EPS)
    if (tl.program_id(0) + 1) * BLOCKS > count // 8:
        rest = (block >= count // 8)[:, None] & (place < count)
        _update(
            total,
            noise,
            scalars,
            weights,
            exp_avg,
            exp_avg_sq,
            ema,
            place,
            rest,
            BETA1,
            BETA2,
            EPS,
        )


@triton.jit
def _update(
    total: tl.tensor,
    noise: tl.tensor,
    scalars: tl.tensor,
    weights: tl.tensor,
    exp_avg: tl.tensor,
    exp_avg_sq: tl.tensor,
    ema: tl.tensor,
    place: tl.tensor,
    mask: tl.tensor,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
) -> None:
    """`noise_step_reference` at the parameters `place` where `mask`."""
    noisy = tl.load(total + place, mask=mask, other=0) + noise
    gradient = (noisy.to(tl.float64) * tl.load(scalars + 1)).to(tl.float32)
    m = tl.load(exp_avg + place, mask=mask, other=0.0)
    m += (gradient - m) * (1 - BETA1)
    v = tl.load(exp_avg_sq + place, mask=mask, other=0.0)
    v = v * BETA2 + gradient * gradient * (1 - BETA2)
    width = tl.div_rn(tl.sqrt_rn(v), tl.load(scalars + 3).to(tl.float32)) + EPS
    w = tl.load(weights + place, mask=mask, other=0.0)
    w -= tl.load(scalars + 2).to(tl.float32) * tl.div_rn(m, width)
    average = tl.load(ema + place, mask=mask, other=0.0)
    average += (w - average) * tl.load(scalars + 4).to(tl.float32)
    tl.store(exp_avg + place, m, mask=mask)
    tl.store(exp_avg_sq + place, v, mask=mask)
    tl.store(weights + place, w, mask=mask)
    tl.store(ema + place, average, mask=mask)
    tl.store(total + place, tl.zeros_like(noisy), mask=mask)
