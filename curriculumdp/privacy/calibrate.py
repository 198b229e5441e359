"""How much noise a budget asks for, and how many steps it allows: bisections over the accountant."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache

from curriculumdp.privacy.accountant import (
    check_delta,
    compose,
    epsilon_of_losses,
    epsilon_of_rdp,
    losses,
    rdp_curve,
)
from curriculumdp.privacy.release import (
    MAX_COUNT,
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    AccountingError,
    Release,
)

__all__ = ["BudgetTooSmall", "most_steps", "solve_noise_multiplier", "solve_noise_multiplier_rdp"]

# Where a bisection ends: the bracket's relative width, 0.01 % of the noise.
TOLERANCE = 1e-4
TOLERANCE_RDP = 1e-3
# Another machine's convolutions round differently, and must not find the plan above its budget.
MARGIN = 1e-6
# A larger budget protects nobody, and its loss distributions take minutes.
MAX_BUDGET = 100.0

Cost = Callable[[float], float]


class BudgetTooSmall(AccountingError):
    """What is fixed already costs all of the budget: no noise and no number of steps can mend that."""


def solve_noise_multiplier(
    fixed: Sequence[Release], sample_rate: float, steps: int, epsilon: float, delta: float
) -> float:
    """The smallest σ for which `fixed` and `steps` subsampled Gaussian steps together cost at most `epsilon`.

    The safe end of a bisection, hence up to 0.01 % above the smallest and never below it; at least 0.1, the
    least that a `Release` takes. RDP brackets the search, which then takes a second or two. Raises
    BudgetTooSmall where `fixed` alone costs the budget, AccountingError for other requests without an answer.
    """
    return _solved(tuple(fixed), sample_rate, steps, epsilon, delta)


@lru_cache(maxsize=32)
def _solved(
    fixed: tuple[Release, ...], sample_rate: float, steps: int, epsilon: float, delta: float
) -> float:
    step = _step(sample_rate, steps)
    _check_budget(epsilon, delta)
    spent = compose(map(losses, fixed))
    _check_left(epsilon_of_losses(spent, delta), fixed, epsilon)
    try:
        guess = solve_noise_multiplier_rdp(fixed, sample_rate, steps, epsilon, delta)
    except BudgetTooSmall:  # by RDP, which is looser: start from the steps alone
        guess = solve_noise_multiplier_rdp([], sample_rate, steps, epsilon, delta)

    def cost(noise_multiplier: float) -> float:
        more = losses(replace(step, noise_multiplier=noise_multiplier))
        return epsilon_of_losses(spent.compose(more), delta)

    return _smallest_noise(cost, epsilon, (0.8 * guess, 1.001 * guess), TOLERANCE)


def solve_noise_multiplier_rdp(
    fixed: Sequence[Release], sample_rate: float, steps: int, epsilon: float, delta: float
) -> float:
    """What `solve_noise_multiplier` would say by RDP: 5 to 12 % too much noise, in a fraction of the time."""
    step = _step(sample_rate, steps)
    _check_budget(epsilon, delta)
    spent = rdp_curve(fixed)
    _check_left(epsilon_of_rdp(spent, delta), fixed, epsilon)

    def cost(noise_multiplier: float) -> float:
        return epsilon_of_rdp(spent + rdp_curve([replace(step, noise_multiplier=noise_multiplier)]), delta)

    return _smallest_noise(cost, epsilon, (1.0, 2.0), TOLERANCE_RDP)


def most_steps(fixed: Sequence[Release], release: Release, epsilon: float, delta: float) -> int:
    """The largest count of `release` (its own count is ignored) for which it and `fixed` cost at most `epsilon`.

    0 where not one fits; at most 10⁶, the most that a `Release` takes. Raises BudgetTooSmall where `fixed` alone
    costs more than the budget.
    """
    _check_budget(epsilon, delta)
    spent = compose(map(losses, fixed))
    alone = epsilon_of_losses(spent, delta)
    if alone > epsilon:
        raise _too_small(alone, fixed, epsilon)

    @cache
    def cost(count: float) -> float:
        return epsilon_of_losses(spent.compose(losses(replace(release, count=int(count)))), delta)

    good = float(_most_steps_rdp(fixed, release, epsilon, delta))
    while good and cost(good) > epsilon:  # runs so weak that RDP is the tighter one
        good = good // 2
    bad = max(1.0, 1.2 * good // 1)
    while cost(bad) <= epsilon:
        if bad == MAX_COUNT:
            return MAX_COUNT
        good, bad = bad, min(2 * bad, float(MAX_COUNT))
    return int(_narrow(cost, epsilon, good, bad, whole=True)) if good else 0


def _most_steps_rdp(fixed: Sequence[Release], release: Release, epsilon: float, delta: float) -> int:
    spent, one = rdp_curve(fixed), rdp_curve([replace(release, count=1)])
    low, high = 0, MAX_COUNT + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if epsilon_of_rdp(spent + middle * one, delta) <= epsilon else (low, middle)
        )
    return low


def _smallest_noise(cost: Cost, budget: float, bracket: tuple[float, float], tolerance: float) -> float:
    """The σ with cost(σ) = budget, from above and to a relative `tolerance`; `cost` falls in σ."""
    cost, budget = cache(cost), budget * (1 - MARGIN)
    low, high = (min(max(end, MIN_NOISE_MULTIPLIER), MAX_NOISE_MULTIPLIER) for end in bracket)
    while cost(high) > budget:
        if high == MAX_NOISE_MULTIPLIER:
            raise AccountingError(
                f"no noise multiplier up to {high:g} keeps these steps within ε = {budget:g}: fewer steps, a lower "
                "sample rate or a larger budget"
            )
        low, high = high, min(2 * high, MAX_NOISE_MULTIPLIER)
    while cost(low) <= budget:
        if low == MIN_NOISE_MULTIPLIER:
            return low
        low, high = max(low / 2, MIN_NOISE_MULTIPLIER), low
    return _narrow(cost, budget, high, low, tolerance)


def _narrow(
    cost: Cost, budget: float, good: float, bad: float, tolerance: float = 0.0, whole: bool = False
) -> float:
    """Moves `good` (cost ≤ budget) and `bad` (cost > budget) together; returns `good`, never a point between.

    Stops at a relative distance of `tolerance`, or at neighbours where only whole numbers count. An aimed
    bisection: ε is nearly a power of σ and of the steps, so a straight line through the ends in logarithms hits
    the crossing, and a probe just beyond it brings the farther end there. A miss doubles the step beyond, up to
    plain bisection.
    """
    beyond = tolerance / 2
    while abs(bad - good) > (1 if whole else tolerance * min(good, bad)):
        span = math.log(bad / good)
        share = 0.5
        if cost(good) > 0:
            share = math.log(budget / cost(good)) / math.log(cost(bad) / cost(good))
        good_is_farther = share > 0.5
        step = min(0.5, max(beyond, 0.5 / good if whole else 0.0) / abs(span))
        share = min(max(share - step if good_is_farther else share + step, step), 1 - step)
        probe = good * math.exp(span * share)
        if whole:
            probe = float(min(max(round(probe), good + 1), bad - 1))
        hit = cost(probe) <= budget
        good, bad = (probe, bad) if hit else (good, probe)
        beyond = tolerance / 2 if hit == good_is_farther else max(4 * beyond, 2 / good if whole else 0.0)
    if cost(good) > budget:
        raise AccountingError(
            f"the accountant contradicts itself at {good!r}: it costs more than ε = {budget:g}"
        )
    return good


def _step(sample_rate: float, steps: int) -> Release:
    return Release("private", "subsampled_gaussian", sample_rate, 1.0, steps)


def _check_budget(epsilon: float, delta: float) -> None:
    check_delta(delta)
    if not (isinstance(epsilon, int | float) and 0 < epsilon <= MAX_BUDGET):
        raise AccountingError(
            f"the budget ε is {epsilon!r}: must be above 0 and at most {MAX_BUDGET:g}, beyond which nobody is protected"
        )


def _check_left(alone: float, fixed: Sequence[Release], budget: float) -> None:
    if alone >= budget:
        raise _too_small(alone, fixed, budget)


def _too_small(alone: float, fixed: Sequence[Release], budget: float) -> BudgetTooSmall:
    names = ", ".join(dict.fromkeys(release.name for release in fixed)) or "nothing"
    return BudgetTooSmall(
        f"{names} alone cost{'s' if len(fixed) == 1 else ''} ε = {alone:.4g} of a budget of {budget:g}: give it fewer "
        "uses, a lower sample rate or more noise, or raise the budget"
    )
