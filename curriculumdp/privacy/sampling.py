"""Poisson samples of units, and how they are cut into microbatches: the same on every rank."""

import numpy as np

from curriculumdp.privacy.randomness import keystream


def poisson_rows(key: bytes, count: int, rate: float) -> np.ndarray:
    """int64, sorted: the places i < count with PRF(key, i) < rate, each with that probability, independently.

    The PRF is the i-th 64-bit word of ChaCha20's keystream; the threshold is rounded down, so that the true rate
    is never above `rate`.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"a sample rate is in [0, 1], not {rate}")
    if rate == 1.0:
        return np.arange(count, dtype=np.int64)
    words = keystream(key, count)
    return np.flatnonzero(words < np.uint64(int(rate * 2.0**64))).astype(np.int64)


def microbatches(rows: np.ndarray, size: int) -> np.ndarray:
    """int64 [n, size]: `rows` in order, cut into microbatches, the last one padded with −1; n = 0 for no rows."""
    count = -(-len(rows) // size)
    padded = np.full(count * size, -1, dtype=np.int64)
    padded[: len(rows)] = rows
    return padded.reshape(count, size)
