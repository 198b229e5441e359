"""The end of a DP-SGD step in one pass over the flat buffers: noise, scale, Adam, EMA, zeroing.

    noisy = n + rint(σ·2³⁶·z)           z standard normal, from ChaCha20 (design D1, D3.5)
    g     = noisy·C/2³⁶ / expected      the expected batch, which is public, never the realised one (D3.6)
    Adam (Kingma and Ba 2015, eq. 1-4 of algorithm 1), then ema ← d·ema + (1−d)·w

Reads and writes 48 bytes per parameter. All buffers are contiguous, [P], in the same order.
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
# √(2 ln 2⁶⁵) = 9.493: no normal is larger in magnitude.
MAX_NORMAL = 9.5


class Buffers(Protocol):
    """The buffers that a step updates, fp32 [P] each."""

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
    """Update `buffers` in place from the un-noised sum `total` int64 [P] (PRIVATE), and zero the sum.

    key: 32 bytes that must never be used for another sum (PRIVATE). step counts from 0. Call it once per step and rank:
    all ranks with the same total and key get the same weights. Raises ValueError if the key is not 32 bytes, P exceeds
    the keystream's counter, the expected batch is not positive, or the noise multiplier is not positive or so large
    that float64 cannot hold its noise exactly on the grid; TypeError if the sum is not one flat int64 tensor.
    """
    if total.dtype != torch.int64 or total.dim() != 1:
        raise TypeError(f"the sum is {total.dtype} {tuple(total.shape)}; it must be one flat int64 tensor")
    if not 0 < noise_multiplier * MAX_NORMAL * GRID < 2.0**53:
        raise ValueError(
            f"noise multiplier {noise_multiplier} must be above 0 and its noise small enough to be exact on the grid"
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
    """Do what `noise_step` does, in torch, with the standard normals `noise` float64 [P]."""
    noisy = total + (noise * (noise_multiplier * GRID)).round().to(torch.int64)
    gradient = (noisy.double() * to_gradient).float()
    adam_step(gradient, buffers, step, learning_rate, ema_decay)
    total.zero_()


def adam_step(gradient: Tensor, buffers: Buffers, step: int, learning_rate: float, ema_decay: float) -> None:
    """Apply one Adam step and the EMA in place, in torch, from a gradient fp32 [P]; step counts from 0."""
    count = step + 1
    buffers.exp_avg.lerp_(gradient, 1 - BETA1)
    buffers.exp_avg_sq.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    width = buffers.exp_avg_sq.sqrt().div_(math.sqrt(1 - BETA2**count)).add_(EPS)
    buffers.weights.addcdiv_(buffers.exp_avg, width, value=-learning_rate / (1 - BETA1**count))
    buffers.ema.lerp_(buffers.weights, 1 - ema_decay)


def gaussian_reference(words: Tensor, count: int) -> Tensor:
    """Return `count` standard normals float64 of the key with words int32 [8]. PRIVATE."""
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
    """Return the step's scalars, float64 [5] on the device: as kernel arguments they would be truncated to fp32."""
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

    # A mask that is constant over a block's eight parameters allows wide loads and stores; an incomplete last block is
    # done separately.
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
    """Do what `noise_step_reference` does at the parameters `place` where `mask` is set."""
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
