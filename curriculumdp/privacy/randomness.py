"""Every private draw of a run, as a pure function of (secret, incarnation, purpose, phase, step, index).

Nothing here has a state: the same key gives the same draw, so that a checkpoint needs no generator and a killed
run goes on with the draws it would have made. What privacy rests on (rows, noise) comes from ChaCha20 (RFC 8439)
under keys made by HKDF-SHA256; the draws that belong to a unit come from Philox4x32-10 (Salmon et al. 2011)
under a key made the same way, since they only have to be independent of other units.
"""

import json
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

SECRET_BYTES = 32
BLOCK_WORDS = 8  # 64-bit words in a ChaCha20 block
MASK = 0xFFFFFFFF
PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85


class RandomnessError(ValueError):
    """A secret that cannot be made or read, or a draw beyond what a key may give."""


class RunSecret:
    """32 bytes of OS entropy, made once per run. Never exported, logged, pickled or shown."""

    __slots__ = ("_bytes",)

    def __init__(self, content: bytes) -> None:
        if len(content) != SECRET_BYTES:
            raise RandomnessError(f"a run's secret has {SECRET_BYTES} bytes, not {len(content)}")
        self._bytes = bytes(content)

    @classmethod
    def create(cls) -> "RunSecret":
        return cls(os.urandom(SECRET_BYTES))

    @classmethod
    def from_bytes(cls, content: bytes) -> "RunSecret":
        return cls(content)

    def __repr__(self) -> str:
        return "RunSecret(not shown)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run's secret is never pickled")

    def key(self, purpose: str, **context: int | float | str) -> bytes:
        """32 bytes for one purpose: HKDF-SHA256 with the canonical JSON of purpose and context as info."""
        info = json.dumps([purpose, context], sort_keys=True, separators=(",", ":"), allow_nan=False)
        return HKDF(SHA256(), 32, salt=b"curriculumdp/1", info=info.encode()).derive(self._bytes)

    def save(self, path: Path) -> None:
        """Writes the secret to a new file of mode 0600, safely on disk when this returns."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, self._bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: Path) -> "RunSecret":
        return cls(path.read_bytes())


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keystream(key: bytes, words: int, first_block: int = 0) -> np.ndarray:
    """uint64 [words] of ChaCha20's keystream from block `first_block` on, nonce 0, little endian (RFC 8439 §2.4)."""
    blocks = -(-words // BLOCK_WORDS)
    if first_block < 0 or first_block + blocks > 2**32:
        raise RandomnessError(f"a key gives 2**32 blocks, {first_block + blocks} were asked for")
    nonce = first_block.to_bytes(4, "little") + bytes(12)
    stream = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(words * 8))
    return np.frombuffer(stream, dtype="<u8")


def gaussian(key: bytes, count: int) -> np.ndarray:
    """float64 [count] standard normals by Box-Muller: words 2i (radius) and 2i+1 (angle) give normals 2i and 2i+1.

    The radius' uniform is (n + ½)/2⁶⁴ of a whole 64-bit word, so that the tail reaches 9.5σ; 32-bit uniforms
    would cut it at 6.8σ.
    """
    words = keystream(key, count + count % 2).reshape(-1, 2).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((words[:, 0] + 0.5) * 2.0**-64))
    angle = words[:, 1] * (2.0 * np.pi * 2.0**-64)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """int64 [..., 4] words in [0, 2³²): Philox4x32-10 of counters int64 [..., 4] (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        # Products of 32-bit words wrap in int64; the mask takes the right bits off the wrapped value.
        p0, p1 = c0 * PHILOX_M0, c2 * PHILOX_M1
        c0 = ((p1 >> 32) & MASK) ^ c1 ^ k0
        c2 = ((p0 >> 32) & MASK) ^ c3 ^ k1
        c1, c3 = p1 & MASK, p0 & MASK
        k0, k1 = (k0 + PHILOX_W0) & MASK, (k1 + PHILOX_W1) & MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def unit_words(key: bytes, step: int, units: Tensor, draws: int, words: int) -> Tensor:
    """int64 [B, draws, words] in [0, 2³²): a function of (key, step, unit, draw, word) and of nothing else.

    units int64 [B], each below 2³². Where a unit stands in the batch, and who stands beside it, changes nothing.
    """
    halves = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:8], "little")
    shape = (len(units), draws, -(-words // 4))
    blocks = torch.arange(shape[2], device=units.device).view(1, 1, -1)
    draw = torch.arange(draws, device=units.device).view(1, -1, 1)
    parts = (blocks, draw, units.view(-1, 1, 1), torch.full((1, 1, 1), step, device=units.device))
    counter = torch.stack([part.expand(shape) for part in parts], dim=-1)
    return philox(counter, halves).flatten(2)[..., :words]


def uniforms(words: Tensor) -> Tensor:
    """float64, as `words` int64 in [0, 2³²): uniform in (0, 1)."""
    return (words.double() + 0.5) * 2.0**-32


def normals(words: Tensor) -> Tensor:
    """float32, as `words` (an even number of them in the last axis): standard normals by Box-Muller.

    Noise of diffusion training, not privacy noise: 32-bit uniforms (up to 6.7σ) are enough for it.
    """
    pairs = words.unflatten(-1, (-1, 2))
    radius = torch.sqrt(-2.0 * torch.log(uniforms(pairs[..., 0]).float()))
    angle = uniforms(pairs[..., 1]).float() * (2.0 * torch.pi)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(-2)
