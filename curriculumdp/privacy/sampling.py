"""Which units a step takes: Poisson sampling by a keyed function of the unit's number; its fixed packing."""

import numpy as np
from numpy.typing import NDArray

from curriculumdp.privacy.streams import keystream


def poisson_rows(key: bytes, count: int, rate: float) -> NDArray[np.int64]:
    """PRIVATE: the sorted numbers i < `count` that are in the sample, int64 [m]; m is random and may be 0.

    Unit i is in iff the i-th 64-bit word of `key`'s ChaCha20 keystream is below rate·2⁶⁴: each independently,
    whatever the others, the batch or the number of processes. The threshold is rounded down, so that the true
    rate never exceeds `rate`; rate 1 takes all, rate 0 none.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"a sample rate lies in [0, 1]: {rate}")
    if rate == 1.0:
        return np.arange(count, dtype=np.int64)
    return np.flatnonzero(keystream(key, count) < np.uint64(int(rate * 2.0**64))).astype(np.int64, copy=False)


def microbatches(rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """`rows` int64 [m] cut into microbatches of a fixed shape: int64 [ceil(m/size), size], padded with −1.

    The cut depends on the sample and the size alone, so that a rank only decides who does a microbatch.
    """
    if size < 1:
        raise ValueError(f"a microbatch holds at least one unit: {size}")
    number = -(-len(rows) // size)
    packed = np.full(number * size, -1, dtype=np.int64)
    packed[: len(rows)] = rows
    return packed.reshape(number, size)
