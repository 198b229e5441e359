"""The limit on all runs of one data set together: a Rényi privacy filter. PUBLIC arithmetic.

A later run is configured by people who have seen the events of earlier ones: its cost depends on them. The
composition that `accountant.py` does (loss distributions) is proved for costs that are fixed beforehand, and
does not cover that. A filter does (Feldman and Zrnic 2021, "Individual Privacy Accounting via a Rényi Filter"):

1. ONE order α is fixed before the first query, here as a function of the budget and δ alone, and with it the
   limit B(α) = ε − ln(1 − 1/α) + ln(α·δ)/(α − 1).
2. An event is let in only while ρ₁ + … + ρₜ ≤ B, where ρᵢ is the Rényi divergence of order α of the i-th
   mechanism, which may have been chosen after everything before it was seen.

Proof. Let Lₜ be the privacy loss of the first t events. Given the past, E exp((α−1)·lossₜ) ≤ exp((α−1)·ρₜ),
hence exp((α−1)·(Lₜ − ρ₁ − … − ρₜ)) is a supermartingale, whose mean is at most 1 wherever one stops. As the ρ
never sum to more than B, E exp((α−1)·L) ≤ exp((α−1)·B): all events together are (α, B)-RDP, which is
(ε, δ)-DP by Canonne, Kamath and Steinke 2020, proposition 12. The same in the other direction of adjacency.

What follows, and what does not:
- Runs may interleave (Haney et al. 2023, "Concurrent Composition for Interactive Differential Privacy with
  Adaptive Privacy-Loss Parameters", for Rényi DP of a fixed order): an event is one act in one order of time.
- A run that ends early gives back what it did not use: only what was really done is in the sum, and to stop is
  a choice like any other. A reservation keeps the sum of what is open within the limit until then.
- To stop only when EVERY order of a grid has passed its own limit proves nothing: which order holds then
  depends on the outputs, and δ would have to be split among them. Neither may the order be chosen again later.
- The budget cannot change once a query was made: with a lower one, the runs before were not stopped by it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from curriculumdp.privacy.accountant import AccountingError, check_delta, epsilon, rdp_curve
from curriculumdp.privacy.calibrate import check_budget, solve_noise_multiplier
from curriculumdp.privacy.event import MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER, PrivacyEvent

# Whole orders: their divergence is a finite binomial sum, without the series that fractional ones need.
ORDERS = range(2, 1025)
# A lower order than a Gaussian's best costs long runs little, and spares rare sampling under little noise, whose
# divergences explode with the order: the lowest that keeps this part of a Gaussian's share of the limit.
KEPT = 0.9
# Divergences of up to 10⁶ uses are rounded by less than this share of any limit.
ROUNDING = 1e-6


class RenyiFilter:
    """Whether events that were chosen one after the other keep to (`budget`, `delta`) together.

    `order`: the one that was fixed for this data set; left out, it is fixed now. Raises AccountingError where
    no whole order up to 1024 leaves a limit above 0: a budget that is next to nothing for its δ.
    """

    def __init__(self, budget: float, delta: float, order: int | None = None) -> None:
        check_budget(budget)
        check_delta(delta)
        self.budget, self.delta = budget, delta
        self.order = order or self._lasting_order()
        self.limit = self._limit(self.order) * (1 - ROUNDING)

    def _lasting_order(self) -> int:
        uses = {alpha: self._limit(alpha) / alpha for alpha in ORDERS}  # how much of a Gaussian would fit
        most = max(uses.values())
        if most <= 0:
            raise AccountingError(
                f"the budget ε is {self.budget!r} at δ = {self.delta:g}: too small for a limit on many runs; "
                "raise it"
            )
        return next(alpha for alpha in ORDERS if uses[alpha] >= KEPT * most)

    def _limit(self, alpha: int) -> float:
        """B(α). A Gaussian's divergence is α/2σ²: the order with the largest B(α)/α has most room for it."""
        return self.budget - math.log1p(-1 / alpha) + math.log(alpha * self.delta) / (alpha - 1)

    def share(self, events: Sequence[PrivacyEvent]) -> float:
        """The part of the limit that `events` take, each with all its uses; parts add up."""
        return max(0.0, float(rdp_curve(events, [self.order])[0])) / self.limit

    def worth(self, share: float) -> float | None:
        """About the ε of a run that takes this part of the limit; None for next to nothing.

        It is exact for one Gaussian, which a long run of DP-SGD resembles: a hint for people, not a bound.
        """
        spent = share * self.limit
        noise = math.sqrt(self.order / (2 * spent)) if spent > 0 else math.inf
        if noise > MAX_NOISE_MULTIPLIER:
            return None
        alike = PrivacyEvent("run", "gaussian", 1.0, max(noise, MIN_NOISE_MULTIPLIER), 1)
        return epsilon([alike], self.delta) or None

    def fitting_epsilon(self, planned: Sequence[PrivacyEvent], share: float) -> str | None:
        """The largest ε, of two digits, at which this plan fits into this part of the limit; None without one.

        The plan at another ε is its own queries and another noise multiplier of DP-SGD, its last row. The number
        was solved and held against the share: four to eight evaluations of the accountant, a second each.
        """
        *fixed, last = planned
        if last.name != "private":
            return None
        noise = self._fitting_noise(fixed, last, share)
        if noise is None:
            return None
        try:
            text = _floored(epsilon([*fixed, replace(last, noise_multiplier=noise)], self.delta))
            solved = solve_noise_multiplier(fixed, last.sample_rate, last.count, float(text), self.delta)
        except AccountingError:  # the queries alone cost more than what the plan comes to, rounded down
            return None
        fits = self.share([*fixed, replace(last, noise_multiplier=solved)]) <= share
        return text if fits else None

    def _fitting_noise(self, fixed: Sequence[PrivacyEvent], last: PrivacyEvent, share: float) -> float | None:
        """The least noise multiplier of `last`, to 0.01 %, with which it and `fixed` take at most `share`."""

        def fits(noise: float) -> bool:
            return self.share([*fixed, replace(last, noise_multiplier=noise)]) <= share

        low, high = last.noise_multiplier, 2 * last.noise_multiplier
        while high <= MAX_NOISE_MULTIPLIER and not fits(high):
            low, high = high, 2 * high
        if high > MAX_NOISE_MULTIPLIER:
            return None
        while high > low * 1.0001:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high


def _floored(value: float) -> str:
    """Two digits, never above the value."""
    if value <= 0:
        raise AccountingError("nothing is left")
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{float(f'{math.floor(value / unit) * unit:.2g}'):g}"
