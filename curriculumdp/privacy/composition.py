"""What composed privacy losses cost, with every rounding error on the safe side. PUBLIC arithmetic.

The loss L of a whole run is a sum of independent losses on one grid, and δ(ε) = E max(0, 1 − e^(ε−L)). A Fourier
transform in double precision gives the n-fold convolution with an absolute error of about n·2⁻⁵³, which says
nothing of a tail of 1e-10. So each use is tilted first: p_λ(l) = p(l)·e^(λl) / M(λ), with M(λ) = Σ p(l)·e^(λl) and
the λ > 0 (the slope) that brings the mean of the sum to where ε is. There the tail is the bulk, and

    δ(ε) = e^(K−λε) · Σ over l > ε of P_λ(l)·e^(−λ(l−ε))·(1 − e^(−(l−ε))),   K = Σ nᵢ·ln Mᵢ(λ),

whatever the slope. The sum's factor never passes c(λ) = λ^λ / (1+λ)^(1+λ). So if the computed P_λ is off by at most
E in the sum of absolute values, δ is off by at most e^(K−λε)·c(λ)·E, which is added. With u = 2⁻⁵³, E adds up:

- *Transform.* Every coefficient of a p_λ of mass 1 passes log₂(cells) stages of at most 8u each (Higham 2002,
  theorem 24.2, has 6.7u), so its error is at most γ = 8·log₂(cells)·u, plus u a row where a long p_λ was folded.
- *Power.* A logarithm, n times it and the exponential: at most 16u·n of a coefficient's size, phase included.
  So a part of n uses adds at most (γ + 16u)·n·Π|X|/|Xᵢ| to each coefficient of the product; by Cauchy-Schwarz and
  Parseval that is (γ + 16u)·n·√(Σₖ (Π|X|/|Xᵢ|)²) in the sum of the cells.
- *Way back, and the final sum.* (γ + cells·u)·√(Σₖ Π|X|²).
- *Tilt.* A weight is exp(ln p + λl): off by 4u times the exponent's terms and 4u, n times.
- *Window.* The sum's mass outside the cells that are kept falls back into them, once lost and once too much: twice
  what Chernoff bounds allow.

E is 1e-7 at most for n = 10⁶ and 1e-9 for some thousand steps; what it adds is about ten times that share of δ,
whatever δ is. Not in it: the rounding of one use's p, some u of its tail a use. The grid's rounding to the safe side
adds (λ + 1)·n·grid²/12 to ε, thousands of times more.
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

UNIT = 2.0**-53  # u: the largest relative error of one operation
STAGE, POWER = 8, 16  # in u: a stage of a transform; a logarithm, its multiple and the exponential
# Tilted mass that may lie beyond each end of the window.
OUTSIDE = 1e-14
# Weights below e^−FAR are left out, and e^−FAR is added for all of them.
FAR = 60
# Two transforms of 2²⁵ cells take a gigabyte; what `check_affordable` lets through stays far below.
MAX_CELLS = 2**25
# Slopes are powers of √2: the best one is at most a fifth away, which costs little but a larger error.
SLOPES = range(-16, 37)
# How close ln δ is solved.
CLOSE = 2e-9


@dataclass(frozen=True, eq=False)
class Part:
    """`uses` of one mechanism in one direction of adjacency.

    masses: float64 [cells], of the losses (lowest + i)·grid in nats; infinite: the mass of an infinite loss.
    """

    grid: float
    lowest: int
    masses: np.ndarray
    infinite: float
    uses: int = 1

    def log_moment(self, slope: float) -> float:
        """ln M(slope) of one use."""
        top, exponents = self._exponents(slope)
        return self._log_top(top, slope) + math.log(np.exp(exponents).sum())

    def tilted(self, slope: float) -> tuple[np.ndarray, float]:
        """The masses of one use's p_λ, float64 [cells], and what their rounding and M's add up to at most."""
        top, exponents = self._exponents(slope)
        weights = np.exp(exponents)
        share = weights / weights.sum()
        held = share > 0
        logs = self._logs
        lifts = slope * self.grid * np.abs(np.arange(len(logs)) - top)
        terms = lifts[held] + np.abs(logs[held])
        fixed = abs(logs[top]) + abs(slope * self.grid * (self.lowest + top))
        return share, 4 * UNIT * (float(share[held] @ terms) + fixed + 4 + math.log2(len(logs)))

    def _exponents(self, slope: float) -> tuple[int, np.ndarray]:
        """The cell where p·e^(λl) is largest, and the logarithm of every cell's over that one's."""
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
    """A composition's P_λ on a window of losses, and the most that its masses are off in sum.

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
        """An upper bound of δ(ε), at any ε; a close one where the slope suits it."""
        log_scale = self.log_scale - self.slope * epsilon
        if log_scale > 700:  # beyond e^709 a float ends; nothing but 1 could be said from here
            return 1.0
        first = int(np.searchsorted(self.losses, epsilon, side="right"))
        last = int(np.searchsorted(self.losses, epsilon + FAR / self.slope, side="right"))
        beyond = self.losses[first:last] - epsilon
        found = float(self.masses[first:last] @ (np.exp(-self.slope * beyond) * -np.expm1(-beyond)))
        rounding = self.error + 4 * UNIT * (self.log_terms + self.slope * abs(epsilon))
        most = found + math.exp(-FAR) + math.exp(_log_factor(self.slope)) * rounding
        return min(1.0, self.infinite + math.exp(log_scale) * most)


class Direction:
    """The composition of `parts`, all on one grid, in one direction of adjacency."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts) or (NOTHING,)
        self.infinite = -math.expm1(sum(part.uses * math.log1p(-part.infinite) for part in self.parts))
        self._log_moments: dict[float, float] = {}  # `cache` would keep large arrays alive in a cycle
        self._tilts: dict[float, Tilted] = {}

    def epsilon(self, delta: float) -> float:
        """The smallest ε with δ(ε) ≤ `delta`, from above; infinity if there is none."""
        if self.infinite >= delta:
            return math.inf

        def bound(slope: float) -> float:  # Chernoff's
            return (self.log_moment(slope) + _log_factor(slope) - math.log(delta)) / slope

        slope = _least(bound)
        return _solved(self.tilted(slope).delta, delta, bound(slope), slope) if bound(slope) > 0 else 0.0

    def delta(self, epsilon: float) -> float:
        """δ(ε), from above."""
        slope = _least(lambda slope: self.log_moment(slope) + _log_factor(slope) - slope * epsilon)
        return self.tilted(slope).delta(epsilon)

    def log_moment(self, slope: float) -> float:
        """K(slope), at any slope."""
        if slope not in self._log_moments:
            self._log_moments[slope] = sum(part.uses * part.log_moment(slope) for part in self.parts)
        return self._log_moments[slope]

    def tilted(self, slope: float) -> Tilted:
        """The composition's P_λ at a slope above 0."""
        if slope not in self._tilts:
            self._tilts[slope] = self._tilted(slope)
        return self._tilts[slope]

    def _tilted(self, slope: float) -> Tilted:
        tilted = [part.tilted(slope) for part in self.parts]
        shares = [share for share, _ in tilted]
        low, high = self._window(slope, shares)
        cells = 2 ** max(1, (high - low).bit_length())
        if cells > MAX_CELLS:
            raise AccountingError(
                f"the losses spread over {(high - low) * self.parts[0].grid:.0f} nats, too many for this "
                "accountant: take more noise, a lower sample rate or fewer events"
            )
        masses, place, error = convolved(self.parts, shares, cells)
        error += sum(part.uses * off for part, (_, off) in zip(self.parts, tilted, strict=True))
        return Tilted(
            slope,
            self.log_moment(slope),
            sum(part.uses * abs(part.log_moment(slope)) for part in self.parts),
            np.arange(low, high + 1) * self.parts[0].grid,
            np.roll(masses, (place - low) % cells)[: high - low + 1],
            error + 4 * OUTSIDE,
            self.infinite,
        )

    def _window(self, slope: float, shares: Sequence[np.ndarray]) -> tuple[int, int]:
        """The cells beyond which, on each side, Chernoff bounds leave at most OUTSIDE of P_λ."""
        grid = self.parts[0].grid
        low = sum(part.uses * part.lowest for part in self.parts)
        high = sum(part.uses * (part.lowest + len(part.masses) - 1) for part in self.parts)
        deviation = math.sqrt(
            sum(part.uses * _variance(share) for part, share in zip(self.parts, shares, strict=True))
        )
        here = self.log_moment(slope)
        for steep in (0.25, 0.5, 1, 2, 4, 8, 16):
            step = steep / max(deviation, 1) / grid
            above = (self.log_moment(slope + step) - here - math.log(OUTSIDE)) / step
            below = (here - self.log_moment(slope - step) + math.log(OUTSIDE)) / step
            low, high = max(low, math.floor(below / grid) - 1), min(high, math.ceil(above / grid) + 1)
        return low, high


class Losses:
    """The privacy losses of a composition in both directions of adjacency; δ(ε) and ε are the worse one's."""

    def __init__(self, *directions: Sequence[Part]) -> None:
        self.parts = directions

    def compose(self, other: "Losses") -> "Losses":
        """The losses of both together."""
        return Losses(*([*mine, *more] for mine, more in zip(self.parts, other.parts, strict=True)))

    def get_epsilon_for_delta(self, delta: float) -> float:
        """The smallest ε with δ(ε) ≤ `delta`, from above; infinity if there is none."""
        return max(direction.epsilon(delta) for direction in self._directions)

    def get_delta_for_epsilon(self, epsilon: Any) -> Any:
        """δ(ε) from above, for one ε or for an array of them."""
        if np.ndim(epsilon):
            return np.array([self.get_delta_for_epsilon(one) for one in epsilon])
        return max(direction.delta(float(epsilon)) for direction in self._directions)

    @cached_property
    def _directions(self) -> list[Direction]:
        return [Direction(parts) for parts in dict.fromkeys(tuple(parts) for parts in self.parts)]


def convolved(
    parts: Sequence[Part], shares: Sequence[np.ndarray], cells: int
) -> tuple[np.ndarray, int, float]:
    """P_λ modulo `cells`: its masses, the cell of the first one, and the most that they are off in sum."""
    logs, rows, place = [], [], 0
    for part, share in zip(parts, shares, strict=True):
        middle = round(float(share @ np.arange(len(share))))
        spectrum = np.fft.rfft(np.roll(_folded(share, cells), -middle))
        logs.append(np.log(np.where(np.abs(spectrum) < 1e-200, 1e-200, spectrum)))
        rows.append(-(-len(share) // cells))
        place += part.uses * (part.lowest + middle)
    total = sum(part.uses * log for part, log in zip(parts, logs, strict=True))
    stages = STAGE * math.log2(cells)
    error = (stages + cells) * _size(np.real(total))
    for part, log, added in zip(parts, logs, rows, strict=True):
        error += part.uses * (stages + added + POWER) * _size(np.real(total - log))
    return np.fft.irfft(np.exp(total), cells), place, UNIT * error


def _folded(share: np.ndarray, cells: int) -> np.ndarray:
    padded = np.pad(share, (0, -len(share) % cells))
    return np.asarray(padded.reshape(-1, cells).sum(axis=0))


def _size(log_sizes: np.ndarray) -> float:
    """√Σ|X|² over a whole spectrum, of which the half that real masses leave is given, as ln|X|."""
    return math.sqrt(2 * float(np.exp(2 * log_sizes).sum()))


def _variance(share: np.ndarray) -> float:
    cells = np.arange(len(share))
    return float(share @ (cells - share @ cells) ** 2)


def _log_factor(slope: float) -> float:
    """ln c(λ): the largest e^(−λx)·(1 − e^(−x)) over x > 0."""
    return -math.log1p(slope) - slope * math.log1p(1 / slope)


def _least(cost: Callable[[float], float]) -> float:
    """The slope of SLOPES where `cost`, which falls and then rises, is least."""
    low, high = SLOPES[0], SLOPES[-1]
    while low < high:
        middle = (low + high) // 2
        if cost(math.sqrt(2) ** middle) <= cost(math.sqrt(2) ** (middle + 1)):
            high = middle
        else:
            low = middle + 1
    return math.sqrt(2) ** low


def _solved(deltas: Callable[[float], float], delta: float, guess: float, slope: float) -> float:
    """An ε ≥ 0 with deltas(ε) ≤ `delta`, within CLOSE in the logarithm unless it is 0; `deltas` falls.

    Brent's method on ln δ, which is nearly straight: near `guess` it falls by about `slope` per unit of ε.
    """

    def over(epsilon: float) -> float:
        return math.log(deltas(epsilon) / delta) + CLOSE / 2

    high = guess
    while (at_high := over(high)) > 0:
        high *= 1.01
    low, step = high, -1.5 * at_high / slope
    while over(low) <= 0:
        if low == 0:
            return 0.0
        high, low, step = low, max(0.0, low - step), 2 * step
    found = float(brentq(over, low, high, xtol=CLOSE / 8 / slope, rtol=1e-14))
    while deltas(found) > delta:
        found += CLOSE / slope
    return found
