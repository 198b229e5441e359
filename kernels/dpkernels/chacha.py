"""ChaCha20 (RFC 8439 §2.3) on uint32 lanes: the keystream of every private draw on a GPU.

Block i of a key's keystream is a pure function of (key, i): counter i, zero nonce. Its eight 64-bit little-endian
words are four (radius, angle) pairs of Box-Muller, hence eight normals per block.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpkernels.device import CHACHA_BLOCKS, use_triton

# "expand 32-byte k", RFC 8439 §2.3.
CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
# Columns, then diagonals, of the 4x4 state: RFC 8439 §2.3.1.
QUARTERS = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)
NORMALS_PER_BLOCK = 8
# The counter is one 32-bit word; past it, blocks would repeat.
MAX_BLOCKS = 2**32
MASK = 0xFFFFFFFF


def key_words(key: bytes, device: torch.device | str = "cpu") -> Tensor:
    """Return the key's eight little-endian words, int32 [8] (bit patterns). PRIVATE. ValueError unless 32 bytes."""
    if len(key) != 32:
        raise ValueError(f"a ChaCha20 key is 32 bytes, not {len(key)}")
    return torch.frombuffer(bytearray(key), dtype=torch.int32).to(device)


def keystream(key: bytes, blocks: int, first_block: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return keystream blocks from `first_block` on, int32 [blocks, 16] (uint32 bit patterns). PRIVATE.

    Raises ValueError if the key is not 32 bytes or a block number exceeds the 32-bit counter.
    """
    check_counter(first_block, blocks)
    words = key_words(key, device)
    if not use_triton(words):
        return keystream_reference(words, blocks, first_block)
    out = torch.empty(blocks, 16, dtype=torch.int32, device=device)
    grid = (triton.cdiv(blocks, CHACHA_BLOCKS),)
    # Passed as a tensor: as a scalar, each new value could compile a new kernel.
    start = _as_int32(torch.tensor([first_block], device=device))
    _keystream_kernel[grid](words, start, out, blocks, CHACHA_BLOCKS, num_warps=4)
    return out


def check_counter(first_block: int, blocks: int) -> None:
    """Raise ValueError if a block number does not fit the 32-bit counter."""
    if not 0 <= first_block <= first_block + blocks <= MAX_BLOCKS:
        raise ValueError(f"blocks {first_block}..{first_block + blocks} exceed ChaCha20's counter of 32 bits")


def keystream_reference(words: Tensor, blocks: int, first_block: int = 0) -> Tensor:
    """Return what `keystream` returns, in torch int64 arithmetic; `words` int32 [8] from `key_words`. PRIVATE."""
    counter = torch.arange(first_block, first_block + blocks, device=words.device)
    zero = torch.zeros_like(counter)
    start = [zero + word for word in CONSTANTS]
    start += [zero + word for word in words.long() & MASK]
    start += [counter, zero, zero, zero]
    state = list(start)
    for _ in range(10):
        for indices in QUARTERS:
            quarter = _quarter_reference(*(state[index] for index in indices))
            for index, word in zip(indices, quarter, strict=True):
                state[index] = word
    block = torch.stack([word + first for word, first in zip(state, start, strict=True)], dim=1)
    return _as_int32(block & MASK)


def _quarter_reference(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the quarter round (RFC 8439 §2.1) of int64 lanes that hold 32-bit words."""
    for turns in ((16, 12), (8, 7)):
        a = (a + b) & MASK
        d = _rotate_reference(d ^ a, turns[0])
        c = (c + d) & MASK
        b = _rotate_reference(b ^ c, turns[1])
    return a, b, c, d


def _rotate_reference(word: Tensor, by: int) -> Tensor:
    return ((word << by) & MASK) | (word >> (32 - by))


def _as_int32(words: Tensor) -> Tensor:
    """Return values in [0, 2³²) as int32 with the same bits."""
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def normals_reference(block: Tensor) -> Tensor:
    """Return standard normals float64 [blocks, 8] from keystream blocks int32 [blocks, 16]. PRIVATE.

    Box-Muller: radius √(−2 ln u), u = (n+½)/2⁶⁴ with all 64 bits, so that the tail reaches 9.49σ.
    """
    halves = (block.long() & MASK).double().view(-1, 4, 2, 2)
    # Each half is exact and their sum rounds once: the correctly rounded 64-bit integer.
    radius_n, angle_n = (halves[..., 0] + halves[..., 1] * 2.0**32).unbind(-1)
    radius = torch.sqrt(-2.0 * torch.log((radius_n + 0.5) * 2.0**-64))
    angle = angle_n * (2.0 * math.pi * 2.0**-64)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).view(-1, 8)


@triton.jit
def _rotate(word: tl.tensor, BY: tl.constexpr) -> tl.tensor:
    return (word << BY) | (word >> (32 - BY))


@triton.jit
def _quarter(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor) -> tuple[tl.tensor, ...]:
    """Return the quarter round (RFC 8439 §2.1)."""
    a += b
    d = _rotate(d ^ a, 16)
    c += d
    b = _rotate(b ^ c, 12)
    a += b
    d = _rotate(d ^ a, 8)
    c += d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


@triton.jit
def chacha_block(key: tl.tensor, counter: tl.tensor) -> tuple[tl.tensor, ...]:
    """Return the 16 words, uint32 [N] each, of the blocks `counter` uint32 [N]; key points at int32 [8]."""
    zero = counter * 0
    s0, s1, s2, s3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    s4 = zero + tl.load(key + 0).to(tl.uint32, bitcast=True)
    s5 = zero + tl.load(key + 1).to(tl.uint32, bitcast=True)
    s6 = zero + tl.load(key + 2).to(tl.uint32, bitcast=True)
    s7 = zero + tl.load(key + 3).to(tl.uint32, bitcast=True)
    s8 = zero + tl.load(key + 4).to(tl.uint32, bitcast=True)
    s9 = zero + tl.load(key + 5).to(tl.uint32, bitcast=True)
    s10 = zero + tl.load(key + 6).to(tl.uint32, bitcast=True)
    s11 = zero + tl.load(key + 7).to(tl.uint32, bitcast=True)
    x0, x1, x2, x3, x4, x5, x6, x7 = s0, s1, s2, s3, s4, s5, s6, s7
    x8, x9, x10, x11, x12, x13, x14, x15 = s8, s9, s10, s11, counter, zero, zero, zero
    for _ in range(10):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    x0, x1, x2, x3 = x0 + s0, x1 + s1, x2 + s2, x3 + s3
    x4, x5, x6, x7 = x4 + s4, x5 + s5, x6 + s6, x7 + s7
    x8, x9, x10, x11, x12 = x8 + s8, x9 + s9, x10 + s10, x11 + s11, x12 + counter
    return x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15


@triton.jit
def box_muller(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return two standard normals float64 [N] from four words, as in `normals_reference`."""
    radius_n = a.to(tl.float64) + b.to(tl.float64) * 4294967296.0
    angle_n = c.to(tl.float64) + d.to(tl.float64) * 4294967296.0
    radius = tl.sqrt(-2.0 * tl.log((radius_n + 0.5) * 5.421010862427522e-20))
    angle = angle_n * 3.4061215800865545e-19
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def chacha_normals(key: tl.tensor, counter: tl.tensor) -> tl.tensor:
    """Return standard normals float64 [N, 8] from the blocks `counter` uint32 [N]."""
    w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15 = chacha_block(key, counter)
    z0, z1 = box_muller(w0, w1, w2, w3)
    z2, z3 = box_muller(w4, w5, w6, w7)
    z4, z5 = box_muller(w8, w9, w10, w11)
    z6, z7 = box_muller(w12, w13, w14, w15)
    # join appends an axis, so the outermost join is the lowest bit of a normal's index.
    even = tl.join(tl.join(z0, z4), tl.join(z2, z6))
    odd = tl.join(tl.join(z1, z5), tl.join(z3, z7))
    return tl.reshape(tl.join(even, odd), (counter.shape[0], 8))


@triton.jit
def _keystream_kernel(
    key: tl.tensor,  # int32 [8]
    first: tl.tensor,  # int32 [1], bits of a uint32
    out: tl.tensor,  # int32 [blocks, 16]
    blocks: tl.tensor,
    BLOCKS: tl.constexpr,
) -> None:
    place = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    counter = tl.load(first).to(tl.uint32, bitcast=True) + place.to(tl.uint32)
    w = chacha_block(key, counter)
    for i in tl.static_range(16):
        tl.store(out + place.to(tl.int64) * 16 + i, w[i].to(tl.int32, bitcast=True), mask=place < blocks)
