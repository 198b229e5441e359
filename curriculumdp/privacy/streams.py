"""Keyed draws: every private draw is a pure function of (run secret, purpose, context, index), without state.

Draws that privacy rests on (Poisson rows, noise) come from ChaCha20 (RFC 8439) under keys that HKDF-SHA256
(RFC 5869) derives from the run's secret. Draws that belong to a single unit (which image, noise level,
diffusion noise) carry no privacy, only repeatability: they come from Philox4x32-10 (Salmon et al., SC 2011),
which any device computes in parallel.
"""

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray
from torch import Tensor

WORDS_PER_BLOCK = 8


MAX_BLOCKS = 2**32


# 64 Ki words (512 KiB) stay in a core's cache during the dozen passes of Box-Muller.
WORDS_AT_ONCE = 2**16


_ZEROS = bytes(8 * WORDS_AT_ONCE)


def keystream(key: bytes, words: int, first_block: int = 0) -> NDArray[np.uint64]:
    """Return ChaCha20's keystream from block `first_block` on, as `words` little-endian 64-bit words; zero nonce.

    The nonce can stay zero because a key serves only one purpose and context. Raises ValueError if the 32-bit
    block counter would wrap and the stream repeat.
    """
    blocks = -(-words // WORDS_PER_BLOCK)
    if words < 0 or first_block < 0 or first_block + blocks > MAX_BLOCKS:
        raise ValueError(
            f"a ChaCha20 key gives at most 2**32 blocks; blocks {first_block} to "
            f"{first_block + blocks} were requested"
        )
    nonce = first_block.to_bytes(4, "little") + bytes(12) if first_block < MAX_BLOCKS else bytes(16)
    encryptor = Cipher(ChaCha20(key, nonce), mode=None).encryptor()
    stream = np.empty(words, dtype="<u8")
    view = stream.view(np.uint8).data
    for start in range(0, len(view), len(_ZEROS)):
        part = view[start : start + len(_ZEROS)]
        encryptor.update_into(_ZEROS[: len(part)], part)
    return stream.astype(np.uint64, copy=False)


def gaussian(key: bytes, count: int) -> NDArray[np.float64]:
    """Return `count` standard normals by Box-Muller, float64 [count], two from each pair of keystream words.

    The radius is √(−2 ln u), u = (n + ½)/2⁶⁴ for a 64-bit word n: |z| reaches 9.49, and the tails beyond have
    probability 2e-21 per normal. The first m of n normals are the m normals of the same key.
    """
    normals = np.empty(count + count % 2)
    for start in range(0, len(normals), WORDS_AT_ONCE):
        words = keystream(key, min(WORDS_AT_ONCE, len(normals) - start), start // WORDS_PER_BLOCK)
        radius = words[0::2].astype(np.float64)
        radius += 0.5
        radius *= 2.0**-64
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle = words[1::2] * (2 * np.pi * 2.0**-64)
        part = normals[start : start + len(words)]
        np.multiply(radius, np.cos(angle), out=part[0::2])
        np.multiply(radius, np.sin(angle), out=part[1::2])
    return normals[:count]


_MASK = 0xFFFFFFFF


_ROUNDS = 10


_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57


_WEYL = 0x9E3779B9, 0xBB67AE85


# 32 Ki counters: six int64 arrays of this size take 1.5 MiB and fit a core's cache.
_COUNTERS_AT_ONCE = 2**15


def unit_words(key: bytes, step: int, units: Tensor, draws: int, words: int) -> Tensor:
    """Return random 32-bit words of single units: int64 [B, draws, words], each in [0, 2³²), on the device of `units`.

    `units` int64 [B], each below 2³² (a padding −1 gets words like any other). A word is a pure function of
    (the first 8 bytes of `key`, step, unit, draw, word index): neither batch nor device nor neighbours matter.
    Not for privacy noise: Philox is not a cipher. Raises ValueError for a step outside [0, 2³²).
    """
    blocks = -(-words // 4)
    if not 0 <= step <= _MASK:
        raise ValueError(f"step is {step}: must be in [0, 2**32)")
    key_words = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:8], "little")
    filled = torch.empty((len(units), draws, blocks, 4), dtype=torch.int64, device=units.device)
    block = torch.arange(blocks, device=units.device)
    draw = torch.arange(draws, device=units.device)[:, None]
    at_once = (
        max(1, _COUNTERS_AT_ONCE // max(1, draws * blocks)) if units.device.type == "cpu" else len(units)
    )
    for start in range(0, len(units), max(1, at_once)):
        unit = units[start : start + at_once, None, None] & _MASK
        shape = (len(unit), draws, blocks)
        counter = [block.expand(shape), draw.expand(shape), unit.expand(shape), torch.full_like(unit, step)]
        philox([part.expand(shape).clone() for part in counter], key_words, filled[start : start + at_once])
    return filled.flatten(2)[..., :words]


def philox(counter: list[Tensor], key: tuple[int, int], out: Tensor) -> None:
    """Write Philox4x32-10 of four int64 counters (each in [0, 2³²), overwritten) into `out` [..., 4].

    A product of two 32-bit numbers wraps in int64 to the right 64 bits; shift and mask recover its halves.
    Words 1 and 3 keep their product's high half until the next round's mask, which saves two passes per round.
    """
    a, b, c, d = counter
    low, high = torch.empty_like(a), torch.empty_like(a)
    for number in range(_ROUNDS):
        k0, k1 = ((k + number * w) & _MASK for k, w in zip(key, _WEYL, strict=True))
        torch.mul(a, _MULTIPLIERS[0], out=low)
        torch.mul(c, _MULTIPLIERS[1], out=high)
        torch.bitwise_right_shift(high, 32, out=a)
        a.bitwise_xor_(b).bitwise_xor_(k0).bitwise_and_(_MASK)
        torch.bitwise_right_shift(low, 32, out=c)
        c.bitwise_xor_(d).bitwise_xor_(k1).bitwise_and_(_MASK)
        b, high = high, b
        d, low = low, d
    for index, part in enumerate((a, b, c, d)):
        torch.bitwise_and(part, _MASK, out=out[..., index])


def uniforms(words: Tensor) -> Tensor:
    """Return (n + ½)/2³² for each word n: float64 in the open interval (0, 1), same shape."""
    return (words.to(torch.float64) + 0.5) * 2.0**-32


def normals(words: Tensor) -> Tensor:
    """Return standard normals, fp32 of the shape of `words` [..., even], by Box-Muller in float64; |z| reaches 6.7.

    Consecutive words are a pair (radius, angle). Computed in float64 so that the rounded result does not
    depend on how a device's fp32 functions round. Raises ValueError for an odd number of words.
    """
    if words.shape[-1] % 2:
        raise ValueError(f"normals come in pairs of words, got an odd number ({words.shape[-1]})")
    radius = uniforms(words[..., 0::2]).log_().mul_(-2.0).sqrt_()
    angle = words[..., 1::2].to(torch.float64).mul_(2 * torch.pi * 2.0**-32)
    out = torch.empty(words.shape, dtype=torch.float32, device=words.device)
    torch.mul(radius, angle.cos(), out=(part := torch.empty_like(radius)))
    out[..., 0::2] = part
    torch.mul(radius, angle.sin_(), out=part)
    out[..., 1::2] = part
    return out
