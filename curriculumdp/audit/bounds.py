"""Lower confidence bounds on ε from membership guesses, by the methods of four papers. Numbers only.

| bound               | from                                 | it holds where                              |
|---------------------|--------------------------------------|---------------------------------------------|
| `epsilon_of_errors` | Nasr et al. 2021, section IV         | trials are independent                      |
| `mu_of_errors`      | Nasr et al. 2023; Dong et al. 2022   | and the trade-off curve is a Gaussian one   |
| `one_run_epsilon`   | Steinke et al. 2023, theorem 5.2     | each canary was in by its own fair coin     |
| `one_run_mu`        | Mahloujifar et al. 2025, algorithm 3 | and the trade-off curve is a Gaussian one   |

Each is wrong (above the true ε) with a probability of at most `significance`. A bound of 0 says nothing was
shown, not that nothing leaks. μ means μ-GDP: N(0, 1) against N(μ, 1); `epsilon_of_mu` turns it into ε at a δ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaincinv, log_ndtr, ndtr, ndtri

# Bounds are looked for on these grids, upwards from 0, and then bisected: the first crossing counts.
STEP, MOST, BISECTIONS = 0.25, 200.0, 30
# Fixed before any score is seen, and paid for by dividing the significance: of the m canaries, the most confident
# ones that are guessed about; log-likelihood ratios from which on a trial is called 'in'.
GUESSED_SHARES = 0.05, 0.2, 0.5, 1.0
THRESHOLDS = 0.0, 2.0, 4.0


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on ε. plain: for any mechanism; gaussian: if its trade-off curve is a Gaussian one."""

    plain: float
    gaussian: float


def bounds_of_one_run(ratios: np.ndarray, included: np.ndarray, delta: float, significance: float) -> Bounds:
    """What one run with many canaries shows; ratios float64 [m], included bool [m], each by a fair coin.

    A canary is guessed 'in' where its log-likelihood ratio is above 0. Each of the two holds with 1 − significance.
    """
    order = np.argsort(-np.abs(ratios), kind="stable")
    correct = ((ratios > 0) == included)[order]
    each = significance / len(GUESSED_SHARES)
    plain, mu, canaries = 0.0, 0.0, len(ratios)
    for share in GUESSED_SHARES:
        guesses = math.ceil(share * canaries)
        right = int(correct[:guesses].sum())
        plain = max(plain, one_run_epsilon(canaries, guesses, right, delta, each))
        mu = max(mu, one_run_mu(canaries, guesses, right, each))
    return Bounds(plain, epsilon_of_mu(mu, delta))


def bounds_of_many_runs(
    ratios: np.ndarray, included: np.ndarray, delta: float, significance: float
) -> Bounds:
    """What independent runs show, with a canary in or out; ratios float64 [n], included bool [n].

    Each of the two holds with 1 − significance: half of it for either kind of error, shared by the thresholds.
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
    """The Clopper-Pearson upper bound of an error's probability after `errors` in `trials`; 1 without trials."""
    if errors >= trials:
        return 1.0
    return float(betaincinv(errors + 1, trials - errors, 1 - significance))


def epsilon_of_errors(false_in: float, false_out: float, delta: float) -> float:
    """The least ε that permits an attack with these rates of false 'in' and false 'out'.

    (ε, δ)-DP asks 1 − false_out ≤ e^ε·false_in + δ, and the same with both exchanged (Kairouz et al. 2015).
    """
    best = 0.0
    for one, other in ((false_in, false_out), (false_out, false_in)):
        if one > 0 and other < 1 - delta:
            best = max(best, math.log((1 - delta - other) / one))
    return best


def mu_of_errors(false_in: float, false_out: float) -> float:
    """The least μ whose Gaussian trade-off curve permits these rates: Φ⁻¹(1 − false_in) − Φ⁻¹(false_out)."""
    if not (0 < false_in < 1 and 0 < false_out < 1):
        return 0.0
    return max(0.0, float(-ndtri(false_in) - ndtri(false_out)))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The ε of a μ-GDP mechanism at `delta`: δ = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ) (Dong et al. 2022, 2.13)."""
    if mu <= 0:
        return 0.0

    def permits(epsilon: float) -> bool:
        first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return bool(math.exp(first) * -math.expm1(min(0.0, second - first)) > delta)

    return _first_crossing(permits, 4 * STEP, 1e6)


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, significance: float) -> float:
    """The least ε at `delta` that `right` of `guesses` about `canaries` fair coins leave possible, in one run."""
    return _first_crossing(
        lambda epsilon: one_run_p_value(canaries, guesses, right, epsilon, delta) <= significance, STEP, MOST
    )


def one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The largest probability that (ε, δ)-DP gives to `right` or more right guesses (theorem 5.2).

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
    """The least μ that `right` of `guesses` about `canaries` fair coins leave possible, in one run."""
    return _first_crossing(lambda mu: _refuted(canaries, guesses, right, mu, significance), STEP, MOST)


def _refuted(canaries: int, guesses: int, right: int, mu: float, significance: float) -> bool:
    """Whether μ-GDP gives `right` or more right guesses less than `significance`.

    With p_j the probability of j right ones, R_i = Σ_{j≥i} p_j·j/m and H_i = Σ_{j≥i} p_j·(guesses − j)/m.
    Changing one canary's coin turns a right guess into a wrong one and leaves the others' number as it was,
    hence R_{i+1} ≤ 1 − f(H_i), that is H_i ≥ Φ(Φ⁻¹(R_{i+1}) − μ). Going down from P[right or more] =
    significance, the total R₀ + H₀ passes guesses/m exactly where that probability is impossible.
    """
    rights = significance * right / canaries
    wrongs = significance * (guesses - right) / canaries
    for number in range(right - 1, -1, -1):
        if rights >= 1:
            return True
        least = max(wrongs, float(ndtr(ndtri(rights) - mu)))
        rights += number / (guesses - number) * (least - wrongs)
        wrongs = least
    return rights + wrongs > guesses / canaries


def _binomial_tail(least: np.ndarray, trials: int, rate: float) -> np.ndarray:
    """P[Binomial(trials, rate) ≥ least], float64, for `least` in 0..trials."""
    tail = betainc(np.maximum(least, 1), trials - np.maximum(least, 1) + 1, rate)
    return np.where(least <= 0, 1.0, tail)


def _first_crossing(impossible: Callable[[float], bool], step: float, most: float) -> float:
    """The least value that is not `impossible`, from below: everything up to it is; `most` if nothing else."""
    low = 0.0
    if not impossible(low):
        return low
    while impossible(high := low + step):
        if high >= most:
            return high
        low, step = high, step * 1.5
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if impossible(middle) else (low, middle)
    return low
