"""P-values, and the level at which a test refutes: thresholds come from it and from nothing else.

Keys are fixed, so a figure is the same in every run. LEVEL is the probability that a right generator would have
failed a test under keys picked at random; where a test looks at many figures, they share it (Bonferroni).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm

LEVEL = 1e-6

Floats = NDArray[np.float64]


def farthest_normal(looks: int) -> float:
    """What the largest of `looks` standard normals exceeds, in size, with probability LEVEL at most."""
    return float(norm.isf(LEVEL / 2 / looks))


def binomial_p(successes: NDArray[np.int64] | int, trials: int, rate: float) -> float:
    """The exact two-sided p-value of the most extreme of some binomial counts, all of them shared out."""
    counts = np.atleast_1d(successes)
    tails = np.minimum(binom.cdf(counts, trials, rate), binom.sf(counts - 1, trials, rate))
    return float(min(1.0, 2 * tails.min() * len(counts)))


def chi_square_p(found: NDArray[np.int64], expected: Floats) -> float:
    """Pearson's goodness of fit; cells are merged from the right until each expects at least 20."""
    cells: list[list[float]] = []
    for seen, mean in zip(found[::-1], expected[::-1], strict=True):
        if cells and cells[-1][1] < 20:
            cells[-1] = [cells[-1][0] + seen, cells[-1][1] + mean]
        else:
            cells.append([seen, mean])
    if len(cells) > 1 and cells[-1][1] < 20:
        last = cells.pop()
        cells[-1] = [cells[-1][0] + last[0], cells[-1][1] + last[1]]
    seen, mean = np.array(cells).T
    return float(chi2.sf(((seen - mean) ** 2 / mean).sum(), len(cells) - 1))


def largest_correlation(one: Floats, other: Floats | None = None) -> float:
    """The largest size of z = √n·correlation over ALL cyclic shifts of two independent rows, shift 0 included.

    With itself (`other` left out) shift 0 is left out, and so are the shifts that say the same twice.
    """
    spectrum = np.fft.rfft(one) * np.conj(np.fft.rfft(one if other is None else other))
    shifts = np.fft.irfft(spectrum, len(one)) / np.sqrt(len(one))
    return float(np.abs(shifts[1 : len(one) // 2] if other is None else shifts).max())
