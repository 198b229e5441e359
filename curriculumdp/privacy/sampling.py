"""Which units a step samples (Poisson sampling, keyed by the unit's index), and their packing into microbatches."""

import numpy as np
from numpy.typing import NDArray

from curriculumdp.privacy.streams import keystream


def poisson_rows(key: bytes, count: int, rate: float) -> NDArray[np.int64]:
    """Return the sorted indices i < `count` in the sample, int64 [m]; m is random and may be 0. PRIVATE.

    Unit i is in the sample iff the i-th 64-bit word of `key`'s ChaCha20 keystream is below rate·2⁶⁴: independently of
    the other units, the batch and the number of processes. The threshold is rounded down, so the true rate never
    exceeds `rate`; rate 1 takes all, rate 0 none. Raises ValueError for a rate outside [0, 1].
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"sample rate is {rate}: must be in [0, 1]")
    if rate == 1.0:
        return np.arange(count, dtype=np.int64)
    return np.flatnonzero(keystream(key, count) < np.uint64(int(rate * 2.0**64))).astype(np.int64, copy=False)


def microbatches(rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return `rows` int64 [m] packed into microbatches of fixed size: int64 [ceil(m/size), size], padded with −1.

    The packing depends only on the sample and the size, so ranks differ only in which microbatches they compute.
    """
    if size < 1:
        raise ValueError(f"microbatch size is {size}: must be at least 1")
    number = -(-len(rows) // size)
    packed = np.full(number * size, -1, dtype=np.int64)
    packed[: len(rows)] = rows
    return packed.reshape(number, size)
