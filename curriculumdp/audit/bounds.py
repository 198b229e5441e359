"""Lower confidence bounds on ε from membership guesses, by the methods of four papers. Pure arithmetic.

| bound               | from                                 | holds if                                    |
|---------------------|--------------------------------------|---------------------------------------------|
| `epsilon_of_errors` | Nasr et al. 2021, section IV         | trials are independent                      |
| `mu_of_errors`      | Nasr et al. 2023; Dong et al. 2022   | also, the trade-off curve is Gaussian       |
| `one_run_epsilon`   | Steinke et al. 2023, theorem 5.2     | each canary was in by its own fair coin     |
| `one_run_mu`        | Mahloujifar et al. 2025, algorithm 3 | also, the trade-off curve is Gaussian       |

Each is wrong (above the true ε) with probability at most `significance`. A bound of 0 means that nothing was
shown, not that nothing leaks. μ refers to μ-GDP: N(0, 1) against N(μ, 1); `epsilon_of_mu` turns it into ε at a δ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaincinv, log_ndtr, ndtr, ndtri

# Bounds are searched for upwards from 0 in growing steps, then bisected: the first crossing counts.
STEP, MAX_BOUND, BISECTIONS = 0.25, 200.0, 30
# Fixed before any score is seen, and corrected for by dividing the significance: the fractions of the m canaries, most
# confident first, that are guessed; the log-likelihood ratios above which a trial is called 'in'.
GUESSED_FRACTIONS = 0.05, 0.2, 0.5, 1.0
THRESHOLDS = 0.0, 2.0, 4.0


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on ε. plain: for any mechanism; gaussian: if its trade-off curve is Gaussian."""

    plain: float
    gaussian: float


def bounds_of_one_run(ratios: np.ndarray, included: np.ndarray, delta: float, significance: float) -> Bounds:
    """Return the bounds from one run with many canaries, each included by a fair coin.

    ratios float64 [m], included bool [m]. A canary is guessed 'in' where its log-likelihood ratio is above 0. Each of
    the two bounds holds with probability 1 − significance.
    """
    order = np.argsort(-np.abs(ratios), kind="stable")
    correct = ((ratios > 0) == included)[order]
    each = significance / len(GUESSED_FRACTIONS)
    plain, mu, canaries = 0.0, 0.0, len(ratios)
    for fraction in GUESSED_FRACTIONS:
        guesses = math.ceil(fraction * canaries)
        right = int(correct[:guesses].sum())
        plain = max(plain, one_run_epsilon(canaries, guesses, right, delta, each))
        mu = max(mu, one_run_mu(canaries, guesses, right, each))
    return Bounds(plain, epsilon_of_mu(mu, delta))


def bounds_of_many_runs(
    ratios: np.ndarray, included: np.ndarray, delta: float, significance: float
) -> Bounds:
    """Return the bounds from independent runs, each with a canary in or out.

    ratios float64 [n], included bool [n]. Each of the two bounds holds with probability 1 − significance: half of the
    significance goes to each kind of error and is divided among the thresholds.
    """
    each = significance / 2 / len(THRESHOLDS)
    inside, outside = ratios[included], ratios[~included]
    plain, mu = 0.0, 0.0
    for threshold in THRESHOLDS:
        false_in = upper_rate(int((outside > threshold).sum()), len(outside), each)
        false_out = upper_rate(int((inside <= threshold).sum()), len(inside), each)
        plain = max(plain, epsilon_of_errors(false_in, false_out, delta))
        mu = max(mu, mu_of_errors(false_in, false_out))
    return Bounds(plain, epsilon_of_mu(mu, delta))


def upper_rate(errors: int, trials: int, significance: float) -> float:
    """Return the Clopper-Pearson upper bound on an error rate after `errors` in `trials`; 1 without trials."""
    if errors >= trials:
        return 1.0
    return float(betaincinv(errors + 1, trials - errors, 1 - significance))


def epsilon_of_errors(false_in: float, false_out: float, delta: float) -> float:
    """Return the smallest ε that permits an attack with these rates of false 'in' and false 'out'.

    (ε, δ)-DP requires 1 − false_out ≤ e^ε·false_in + δ, and the same with the two exchanged (Kairouz et al. 2015).
    """
    best = 0.0
    for one, other in ((false_in, false_out), (false_out, false_in)):
        if one > 0 and other < 1 - delta:
            best = max(best, math.log((1 - delta - other) / one))
    return best


def mu_of_errors(false_in: float, false_out: float) -> float:
    """Return the smallest μ whose Gaussian trade-off curve permits these rates, Φ⁻¹(1 − false_in) − Φ⁻¹(false_out)."""
    if not (0 < false_in < 1 and 0 < false_out < 1):
        return 0.0
    return max(0.0, float(-ndtri(false_in) - ndtri(false_out)))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Return the ε of μ-GDP at `delta`: δ = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ) (Dong et al. 2022, corollary 2.13)."""
    if mu <= 0:
        return 0.0

    def permits(epsilon: float) -> bool:
        first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return bool(math.exp(first) * -math.expm1(min(0.0, second - first)) > delta)

    return _first_crossing(permits, 4 * STEP, 1e6)


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, significance: float) -> float:
    """Return the smallest ε at `delta` not refuted by `right` of `guesses` about `canaries` fair coins in one run."""
    return _first_crossing(
        lambda epsilon: one_run_p_value(canaries, guesses, right, epsilon, delta) <= significance,
        STEP,
        MAX_BOUND,
    )


def one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return the largest probability of at least `right` right guesses under (ε, δ)-DP (theorem 5.2).

    β + 2mδ·max_i P[right − i ≤ W < right]/i, with W ~ Binomial(guesses, e^ε/(1 + e^ε)) and β = P[W ≥ right].
    """
    if right <= 0:
        return 1.0
    rate = 1 / (1 + math.exp(-epsilon))
    at_least = _binomial_tail(np.arange(right + 1), guesses, rate)
    beta = at_least[right]
    alpha = ((at_least[right - 1 :: -1] - beta) / np.arange(1, right + 1)).max()
    return float(min(1.0, beta + 2 * canaries * delta * alpha))


def one_run_mu(canaries: int, guesses: int, right: int, significance: float) -> float:
    """Return the smallest μ not refuted by `right` of `guesses` about `canaries` fair coins in one run."""
    return _first_crossing(lambda mu: _refuted(canaries, guesses, right, mu, significance), STEP, MAX_BOUND)


def _refuted(canaries: int, guesses: int, right: int, mu: float, significance: float) -> bool:
    """Return whether μ-GDP gives at least `right` right guesses a probability below `significance`.

    With p_j the probability of j right guesses, R_i = Σ_{j≥i} p_j·j/m and H_i = Σ_{j≥i} p_j·(guesses − j)/m.
    Flipping one canary's coin turns a right guess into a wrong one and leaves the number of right guesses about the
    others unchanged, so R_{i+1} ≤ 1 − f(H_i), that is H_i ≥ Φ(Φ⁻¹(R_{i+1}) − μ). Going down from P[at least right] =
    significance, the total R₀ + H₀ exceeds guesses/m exactly where that probability is impossible.
    """
    rights = significance * right / canaries
    wrongs = significance * (guesses - right) / canaries
    for number in range(right - 1, -1, -1):
        if rights >= 1:
            return True
        bound = max(wrongs, float(ndtr(ndtri(rights) - mu)))
        rights += number / (guesses - number) * (bound - wrongs)
        wrongs = bound
    return rights + wrongs > guesses / canaries


def _binomial_tail(low: np.ndarray, trials: int, rate: float) -> np.ndarray:
    """Return P[Binomial(trials, rate) ≥ low], float64, for `low` in 0..trials."""
    tail = betainc(np.maximum(low, 1), trials - np.maximum(low, 1) + 1, rate)
    return np.where(low <= 0, 1.0, tail)


def _first_crossing(impossible: Callable[[float], bool], step: float, limit: float) -> float:
    """Return the first value from 0 up that is not `impossible`, approached from below.

    The search stops at the first `impossible` grid value that is at least `limit` and returns it.
    """
    low = 0.0
    if not impossible(low):
        return low
    while impossible(high := low + step):
        if high >= limit:
            return high
        low, step = high, step * 1.5
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if impossible(middle) else (low, middle)
    return low
