"""A third accountant for tests: no grid of losses and no FFT, but a contour integral, to about 1e-8 of δ.

With M(z) = E e^(zL), the moments of a run's privacy loss L, which are products over its uses of ∫ P^(1+z)·Q^(−z),

    δ(ε) = 1/2πi · ∫ M(z)·e^(−zε) / (z·(z + 1)) dz   along Re z = λ, for any λ > 0

(1/(z(z + 1)) is the transform of max(0, 1 − e^(ε−l))). Near the saddle point nothing cancels, however small δ is.
Both integrands are smooth and fall like Gaussians, so
that the trapezoid rule converges exponentially; a run with finer rules shows how far it has. Outcomes so far out
that all uses together meet them with a probability below δ·1e-6 are left out: rare sampling has infinitely strong
losses there, which would draw the saddle point away. So ε is a lower end, by next to nothing. Runs of few uses,
whose moments fall slowly along the contour, are out of reach.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

Uses = tuple[float, float, int]  # rate, noise multiplier, count
ADD_OR_REMOVE = ("removed", "added")
REPLACE = ("replaced",)  # the same in both directions


def epsilon_by_contour(
    parts: Sequence[Uses], delta: float, points: int = 12, pairs: Sequence[str] = ADD_OR_REMOVE
) -> float:
    """ε of `parts` together, 0 where it is next to nothing; the rules take `points` per standard deviation."""
    return max(Contour(parts, pair, delta, points).epsilon() for pair in pairs)


def delta_by_contour(parts: Sequence[Uses], epsilon: float, near: float, points: int = 12) -> float:
    """δ(ε) of `parts` together, which should be somewhere `near`."""
    return max(Contour(parts, pair, near, points).delta_at(epsilon) for pair in ADD_OR_REMOVE)


class Contour:
    """δ(ε) of one pair of neighbours, from moments along the line whose λ suits `delta`."""

    def __init__(self, parts: Sequence[Uses], pair: str, delta: float, points: int = 12) -> None:
        self.parts, self.pair, self.points, self.delta = parts, pair, points, delta
        self.reach = float(norm.isf(1e-6 * delta / sum(count for *_, count in parts)))
        found = minimize_scalar(lambda log: self._chernoff(math.exp(log)), bounds=(-4, 12), method="bounded")
        self.most, self.slope = float(found.fun), math.exp(found.x)
        step = min(self._width(), self.slope) / points
        heights, logs = [], []
        for first in range(0, 2000 * points, 16 * points):
            heights.append(step * np.arange(first, first + 16 * points))
            logs.append(self.log_moment(self.slope + 1j * heights[-1]))
            if logs[-1].real[-1] < logs[0].real[0] - 30:  # nothing is left
                break
        else:
            raise ValueError(f"{parts}: too few uses for a contour")
        self.z, self.logs = self.slope + 1j * np.concatenate(heights), np.concatenate(logs)
        self.weights = np.where(self.z.imag > 0, 2.0, 1.0) * step / (2 * math.pi)

    def delta_at(self, epsilon: float) -> float:
        """δ(ε)."""
        terms = np.exp(self.logs - self.z * epsilon) / (self.z * (self.z + 1))
        return float(self.weights @ terms.real)

    def epsilon(self) -> float:
        """The ε with δ(ε) = delta."""

        def over(epsilon: float) -> float:
            return math.log(max(self.delta_at(epsilon), 1e-300) / self.delta)

        low = self.most
        while low > 1e-3 * abs(self.most):
            if over(low) > 0:
                return float(brentq(over, low, self.most, xtol=1e-14, rtol=1e-13))
            low *= 0.9
        return 0.0

    def log_moment(self, z: np.ndarray) -> np.ndarray:
        """ln M(z), complex [z], for z on one line; whole turns of 2πi do not matter, as counts are whole."""
        return sum((count * self._of_one(rate, sigma, z) for rate, sigma, count in self.parts), start=0 * z)

    def _of_one(self, rate: float, sigma: float, z: np.ndarray) -> np.ndarray:
        if rate == 1:  # a Gaussian's in closed form
            return (4 if self.pair == "replaced" else 1) * z * (z + 1) / (2 * sigma**2)
        slope = float(z.real[0])
        ends = math.ceil((self.reach + 1 / sigma) * self.points)
        x = np.arange(-ends, ends + 1) / self.points  # outcomes over σ
        base = -(x**2) / 2 - math.log(math.sqrt(2 * math.pi))
        p, q = {
            "removed": (_mixed(base, x, rate, sigma), base),
            "added": (base, _mixed(base, x, rate, sigma)),
            "replaced": (_mixed(base, x, rate, sigma), _mixed(base, -x, rate, sigma)),
        }[self.pair]
        logs = (1 + slope) * p - slope * q - math.log(self.points)
        kept = logs > logs.max() - 50
        weights = np.exp(logs[kept] - logs.max())
        angles = np.outer(z.imag, (p - q)[kept])
        turned = (-2 * np.sin(angles / 2) ** 2 + 1j * np.sin(angles)) @ (weights / weights.sum())
        return logs.max() + np.log(weights.sum()) + np.log1p(turned)

    def _real(self, slope: float) -> float:
        return float(self.log_moment(np.array([slope + 0j])).real[0])

    def _chernoff(self, slope: float) -> float:
        factor = slope * math.log(slope) - (1 + slope) * math.log1p(slope)
        return (self._real(slope) + factor - math.log(self.delta)) / slope

    def _width(self) -> float:
        """1 over the tilted loss's standard deviation."""
        step = 1e-2 * self.slope
        around = [self._real(self.slope + step * place) for place in (-1, 0, 1)]
        return step / math.sqrt(max(around[0] - 2 * around[1] + around[2], 1e-12))


def _mixed(base: np.ndarray, x: np.ndarray, rate: float, sigma: float) -> np.ndarray:
    """The logarithm of (1 − q)·N(0, 1) + q·N(1/σ, 1)."""
    return base + np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x * sigma - 1) / (2 * sigma**2))
