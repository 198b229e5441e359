"""Privacy loss distributions on a grid, composed with every rounding error on the safe side. PUBLIC arithmetic.

The loss L of a whole run is a sum of independent losses on one grid, and δ(ε) = E max(0, 1 − e^(ε−L)). A Fourier
transform in double precision gives the n-fold convolution with an absolute error of about n·2⁻⁵³, too coarse for
a tail of 1e-10. So each use is tilted first: p_λ(l) = p(l)·e^(λl) / M(λ), with M(λ) = Σ p(l)·e^(λl) and the
λ > 0 (the slope) that moves the mean of the sum to ε. There the tail becomes the bulk, and

    δ(ε) = e^(K−λε) · Σ over l > ε of P_λ(l)·e^(−λ(l−ε))·(1 − e^(−(l−ε))),   K = Σ nᵢ·ln Mᵢ(λ),

for any slope. The factor in the sum never exceeds c(λ) = λ^λ / (1+λ)^(1+λ). So if the computed P_λ is off by at
most E in the sum of absolute values, δ is off by at most e^(K−λε)·c(λ)·E, which is added. With u = 2⁻⁵³, E is the
sum of:

- *Transform.* Every coefficient of a p_λ of mass 1 passes log₂(cells) stages of at most 8u each (Higham 2002,
  theorem 24.2, has 6.7u), so its error is at most γ = 8·log₂(cells)·u, plus u per row where a long p_λ was folded.
- *Power.* A logarithm, n times it and the exponential: at most 16u·n of a coefficient's size, phase included.
  So a part of n uses adds at most (γ + 16u)·n·Π|X|/|Xᵢ| to each coefficient of the product; by Cauchy-Schwarz and
  Parseval that is (γ + 16u)·n·√(Σₖ (Π|X|/|Xᵢ|)²) in the sum of the cells.
- *Inverse transform and final sum.* (γ + cells·u)·√(Σₖ Π|X|²).
- *Tilt.* A weight is exp(ln p + λl): off by 4u times the exponent's terms and 4u, n times.
- *Window.* The mass of the sum outside the kept cells wraps into them, once lost and once in excess: twice what
  Chernoff bounds allow.

E is at most 1e-7 for n = 10⁶ and 1e-9 for some thousand steps; it adds about ten times that fraction of δ, whatever
δ is. E does not include the rounding of one use's p, a few u of its tail per use: the grid's rounding to the safe
side adds (λ + 1)·n·grid²/12 to ε, thousands of times more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import brentq

from curriculumdp.privacy.event import AccountingError

__all__ = ["Direction", "Losses", "Part", "Tilted", "convolved"]

UNIT = 2.0**-53  # u: the max relative error of one operation
STAGE, POWER = 8, 16  # in u: one stage of a transform; a logarithm, its multiple and the exponential
# Max tilted mass beyond each end of the window.
OUTSIDE = 1e-14
# Weights below e^−FAR are dropped, and e^−FAR is added for all of them.
FAR = 60
# Two transforms of 2²⁵ cells take a gigabyte; whatever `check_affordable` accepts stays far below.
MAX_CELLS = 2**25
# Slopes are powers of √2: the best slope is at most a fifth away, which only makes the error a little larger.
SLOPES = range(-16, 37)
# Tolerance of the solution in ln δ.
CLOSE = 2e-9


@dataclass(frozen=True, eq=False)
class Part:
    """`uses` of one mechanism in one direction of adjacency.

    masses: float64 [cells], of the losses (lowest + i)·grid in nats. infinite: the mass of an infinite loss.
    """

    grid: float
    lowest: int
    masses: np.ndarray
    infinite: float
    uses: int = 1

    def log_moment(self, slope: float) -> float:
        """Return ln M(slope) of one use."""
        top, exponents = self._exponents(slope)
        return self._log_top(top, slope) + math.log(np.exp(exponents).sum())

    def tilted(self, slope: float) -> tuple[np.ndarray, float]:
        """Return the masses of one use's p_λ, float64 [cells], and a bound on the rounding error of them and of M."""
        top, exponents = self._exponents(slope)
        weights = np.exp(exponents)
        probabilities = weights / weights.sum()
        held = probabilities > 0
        logs = self._logs
        lifts = slope * self.grid * np.abs(np.arange(len(logs)) - top)
        terms = lifts[held] + np.abs(logs[held])
        fixed = abs(logs[top]) + abs(slope * self.grid * (self.lowest + top))
        return probabilities, 4 * UNIT * (
            float(probabilities[held] @ terms) + fixed + 4 + math.log2(len(logs))
        )

    def _exponents(self, slope: float) -> tuple[int, np.ndarray]:
        """Return the cell where p·e^(λl) is largest, and every cell's logarithm relative to that cell's."""
        rough = self._logs + slope * self.grid * np.arange(len(self.masses))
        top = int(np.argmax(rough))
        steps = np.arange(-top, len(self.masses) - top)
        return top, self._logs - self._logs[top] + slope * self.grid * steps

    def _log_top(self, top: int, slope: float) -> float:
        return float(self._logs[top]) + slope * self.grid * (self.lowest + top)

    @cached_property
    def _logs(self) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(self.masses)


NOTHING = Part(1.0, 0, np.ones(1), 0.0)


@dataclass(frozen=True, eq=False)
class Tilted:
    """A composition's P_λ on a window of losses, and a bound on the summed error of its masses.

    losses, masses: float64 [cells], losses ascending. log_scale: K. log_terms: Σ|nᵢ·ln Mᵢ|, for its rounding.
    """

    slope: float
    log_scale: float
    log_terms: float
    losses: np.ndarray
    masses: np.ndarray
    error: float
    infinite: float

    def delta(self, epsilon: float) -> float:
        """Return an upper bound of δ(ε): valid for any ε, tight where the slope suits it."""
        log_scale = self.log_scale - self.slope * epsilon
        if log_scale > 700:  # a float overflows beyond e^709, and the bound would be 1 anyway
            return 1.0
        first = int(np.searchsorted(self.losses, epsilon, side="right"))
        last = int(np.searchsorted(self.losses, epsilon + FAR / self.slope, side="right"))
        beyond = self.losses[first:last] - epsilon
        found = float(self.masses[first:last] @ (np.exp(-self.slope * beyond) * -np.expm1(-beyond)))
        rounding = self.error + 4 * UNIT * (self.log_terms + self.slope * abs(epsilon))
        bound = found + math.exp(-FAR) + math.exp(_log_factor(self.slope)) * rounding
        return min(1.0, self.infinite + math.exp(log_scale) * bound)


class Direction:
    """The composition of `parts`, all on one grid, in one direction of adjacency."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts) or (NOTHING,)
        self.infinite = -math.expm1(sum(part.uses * math.log1p(-part.infinite) for part in self.parts))
        self._log_moments: dict[float, float] = {}  # `cache` would keep large arrays alive in a cycle
        self._tilts: dict[float, Tilted] = {}

    def epsilon(self, delta: float) -> float:
        """Return the smallest ε with δ(ε) ≤ `delta`, from above; infinity if there is none."""
        if self.infinite >= delta:
            return math.inf

        def bound(slope: float) -> float:  # Chernoff's
            return (self.log_moment(slope) + _log_factor(slope) - math.log(delta - self.infinite)) / slope

        slope = _best_slope(bound)
        return _solved(self.tilted(slope).delta, delta, bound(slope), slope) if bound(slope) > 0 else 0.0

    def delta(self, epsilon: float) -> float:
        """Return δ(ε), from above."""
        slope = _best_slope(lambda slope: self.log_moment(slope) + _log_factor(slope) - slope * epsilon)
        return self.tilted(slope).delta(epsilon)

    def log_moment(self, slope: float) -> float:
        """Return K(slope), at any slope."""
        if slope not in self._log_moments:
            self._log_moments[slope] = sum(part.uses * part.log_moment(slope) for part in self.parts)
        return self._log_moments[slope]

    def tilted(self, slope: float) -> Tilted:
        """Return the composition's P_λ at a slope above 0."""
        if slope not in self._tilts:
            self._tilts[slope] = self._tilted(slope)
        return self._tilts[slope]

    def _tilted(self, slope: float) -> Tilted:
        tilted = [part.tilted(slope) for part in self.parts]
        distributions = [probabilities for probabilities, _ in tilted]
        low, high = self._window(slope, distributions)
        cells = 2 ** max(1, (high - low).bit_length())
        if cells > MAX_CELLS:
            raise AccountingError(
                f"the losses spread over {(high - low) * self.parts[0].grid:.0f} nats, too many for this "
                "accountant: use a higher noise_multiplier, a lower sample rate or fewer events"
            )
        masses, offset, error = convolved(self.parts, distributions, cells)
        error += sum(part.uses * off for part, (_, off) in zip(self.parts, tilted, strict=True))
        return Tilted(
            slope,
            self.log_moment(slope),
            sum(part.uses * abs(part.log_moment(slope)) for part in self.parts),
            np.arange(low, high + 1) * self.parts[0].grid,
            np.roll(masses, (offset - low) % cells)[: high - low + 1],
            error + 4 * OUTSIDE,
            self.infinite,
        )

    def _window(self, slope: float, distributions: Sequence[np.ndarray]) -> tuple[int, int]:
        """Return the cells beyond which, on each side, Chernoff bounds leave at most OUTSIDE of P_λ."""
        grid = self.parts[0].grid
        low = sum(part.uses * part.lowest for part in self.parts)
        high = sum(part.uses * (part.lowest + len(part.masses) - 1) for part in self.parts)
        deviation = math.sqrt(
            sum(
                part.uses * _variance(probabilities)
                for part, probabilities in zip(self.parts, distributions, strict=True)
            )
        )
        moment = self.log_moment(slope)
        for steep in (0.25, 0.5, 1, 2, 4, 8, 16):
            step = steep / max(deviation, 1) / grid
            above = (self.log_moment(slope + step) - moment - math.log(OUTSIDE)) / step
            below = (moment - self.log_moment(slope - step) + math.log(OUTSIDE)) / step
            low, high = max(low, math.floor(below / grid) - 1), min(high, math.ceil(above / grid) + 1)
        return low, high


class Losses:
    """The privacy losses of a composition in both directions of adjacency. δ(ε) and ε are those of the worse one."""

    def __init__(self, *directions: Sequence[Part]) -> None:
        self.parts = directions

    def compose(self, other: "Losses") -> "Losses":
        """Return the losses of both compositions together."""
        return Losses(*([*mine, *more] for mine, more in zip(self.parts, other.parts, strict=True)))

    def get_epsilon_for_delta(self, delta: float) -> float:
        """Return the smallest ε with δ(ε) ≤ `delta`, from above; infinity if there is none."""
        return max(direction.epsilon(delta) for direction in self._directions)

    def get_delta_for_epsilon(self, epsilon: Any) -> Any:
        """Return δ(ε) from above, for one ε or an array of them."""
        if np.ndim(epsilon):
            return np.array([self.get_delta_for_epsilon(one) for one in epsilon])
        return max(direction.delta(float(epsilon)) for direction in self._directions)

    @cached_property
    def _directions(self) -> list[Direction]:
        return [Direction(parts) for parts in dict.fromkeys(tuple(parts) for parts in self.parts)]


def convolved(
    parts: Sequence[Part], distributions: Sequence[np.ndarray], cells: int
) -> tuple[np.ndarray, int, float]:
    """Return P_λ modulo `cells`: its masses, the cell of the first one, and a bound on their summed error."""
    logs, rows, offset = [], [], 0
    for part, probabilities in zip(parts, distributions, strict=True):
        middle = round(float(probabilities @ np.arange(len(probabilities))))
        spectrum = np.fft.rfft(np.roll(_folded(probabilities, cells), -middle))
        logs.append(np.log(np.where(np.abs(spectrum) < 1e-200, 1e-200, spectrum)))
        rows.append(-(-len(probabilities) // cells))
        offset += part.uses * (part.lowest + middle)
    total = sum(part.uses * log for part, log in zip(parts, logs, strict=True))
    stages = STAGE * math.log2(cells)
    error = (stages + cells) * _size(np.real(total))
    for part, log, added in zip(parts, logs, rows, strict=True):
        error += part.uses * (stages + added + POWER) * _size(np.real(total - log))
    return np.fft.irfft(np.exp(total), cells), offset, UNIT * error


def _folded(probabilities: np.ndarray, cells: int) -> np.ndarray:
    padded = np.pad(probabilities, (0, -len(probabilities) % cells))
    return np.asarray(padded.reshape(-1, cells).sum(axis=0))


def _size(log_sizes: np.ndarray) -> float:
    """Return √Σ|X|² over a full spectrum. `log_sizes`: ln|X| of the half that a real signal's transform keeps."""
    return math.sqrt(2 * float(np.exp(2 * log_sizes).sum()))


def _variance(probabilities: np.ndarray) -> float:
    cells = np.arange(len(probabilities))
    return float(probabilities @ (cells - probabilities @ cells) ** 2)


def _log_factor(slope: float) -> float:
    """Return ln c(λ): the max of e^(−λx)·(1 − e^(−x)) over x > 0."""
    return -math.log1p(slope) - slope * math.log1p(1 / slope)


def _best_slope(cost: Callable[[float], float]) -> float:
    """Return the slope of SLOPES that minimises `cost`, which must fall and then rise."""
    low, high = SLOPES[0], SLOPES[-1]
    while low < high:
        middle = (low + high) // 2
        if cost(math.sqrt(2) ** middle) <= cost(math.sqrt(2) ** (middle + 1)):
            high = middle
        else:
            low = middle + 1
    return math.sqrt(2) ** low


def _solved(deltas: Callable[[float], float], delta: float, guess: float, slope: float) -> float:
    """Return an ε ≥ 0 with deltas(ε) ≤ `delta`, within CLOSE in ln δ unless it is 0; `deltas` must decrease.

    Brent's method on ln δ, which is nearly straight: near `guess` it falls by about `slope` per unit of ε.
    """

    def over(epsilon: float) -> float:
        return math.log(deltas(epsilon) / delta) + CLOSE / 2

    high = guess
    while (at_high := over(high)) > 0:
        high *= 1.01
    low, step = high, max(-1.5 * at_high, CLOSE) / slope
    while over(low) <= 0:
        if low == 0:
            return 0.0
        high, low, step = low, max(0.0, low - step), 2 * step
    found = float(brentq(over, low, high, xtol=CLOSE / 8 / slope, rtol=1e-14))
    while deltas(found) > delta:
        found += CLOSE / slope
    return found
