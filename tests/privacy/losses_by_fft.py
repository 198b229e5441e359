"""A second accountant for tests, which shares no line with the first: numpy, a grid and one FFT.

Privacy losses of the Poisson-subsampled Gaussian (Gopi et al. 2021, Propositions B1 and B4) are rounded to the
NEAREST multiple of `grid`, so the result is an estimate and no bound; it is good to about 1e-4.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_ndtr, ndtr


def epsilon_by_fft(
    parts: Sequence[tuple[float, float, int]], delta: float, reach: float, grid: float = 1e-4
) -> float:
    """ε of `parts` (rate, noise multiplier, count) together; all losses must lie within ±`reach`."""
    cells = int(2 ** np.ceil(np.log2(2 * reach / grid)))
    places = (np.arange(cells) - cells // 2) * grid
    worst = 0.0
    for below in (_loss_cdf_removed, _loss_cdf_added):
        spectrum = np.ones(cells // 2 + 1, dtype=complex)
        for rate, sigma, count in parts:
            edges = np.append(places - grid / 2, places[-1] + grid / 2)
            mass = np.diff(below(edges, rate, sigma))
            spectrum *= np.fft.rfft(np.fft.ifftshift(mass)) ** count
        mass = np.fft.fftshift(np.fft.irfft(spectrum, cells))
        worst = max(worst, _smallest_epsilon(places, mass, delta))
    return worst


def _threshold(loss: np.ndarray, rate: float, sigma: float) -> np.ndarray:
    """The x at which ln(1 − q + q·exp((2x − 1)/2σ²)) is `loss`; −∞ below the least loss."""
    inside = np.expm1(loss) + rate
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(inside > 0, sigma**2 * np.log(inside / rate) + 0.5, -np.inf)


def _loss_cdf_removed(loss: np.ndarray, rate: float, sigma: float) -> np.ndarray:
    x = _threshold(loss, rate, sigma)
    return (1 - rate) * ndtr(x / sigma) + rate * ndtr((x - 1) / sigma)


def _loss_cdf_added(loss: np.ndarray, rate: float, sigma: float) -> np.ndarray:
    return np.exp(log_ndtr(-_threshold(-loss, rate, sigma) / sigma))


def _smallest_epsilon(losses: np.ndarray, mass: np.ndarray, delta: float) -> float:
    def excess(epsilon: float) -> float:
        above = losses > epsilon
        return float(mass[above] @ -np.expm1(epsilon - losses[above])) - delta

    low, high = 0.0, float(losses[-1])
    if excess(low) <= 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
