"""The limit on all runs of one data set together: a Rényi privacy filter. PUBLIC arithmetic.

A later run is configured by people who have seen the events of earlier runs, so its cost depends on them. The
composition in `accountant.py` (loss distributions) is proved for costs that are fixed beforehand and does not
cover that. A filter does (Feldman and Zrnic 2021, "Individual Privacy Accounting via a Rényi Filter"):

1. ONE order α is fixed before the first query, here as a function of the budget and δ alone, and with it the
   limit B(α) = ε − ln(1 − 1/α) + ln(α·δ)/(α − 1).
2. An event is admitted only while ρ₁ + … + ρₜ ≤ B, where ρᵢ is the Rényi divergence of order α of the i-th
   mechanism, which may be chosen after seeing everything before it.

Proof. Let Lₜ be the privacy loss of the first t events. Given the past, E exp((α−1)·lossₜ) ≤ exp((α−1)·ρₜ),
hence exp((α−1)·(Lₜ − ρ₁ − … − ρₜ)) is a supermartingale, whose mean is at most 1 at any stopping time. As the ρ
never sum to more than B, E exp((α−1)·L) ≤ exp((α−1)·B): all events together are (α, B)-RDP, which is
(ε, δ)-DP by Canonne, Kamath and Steinke 2020, proposition 12. The same holds in the other direction of adjacency.

What follows, and what does not:
- Runs may interleave (Haney et al. 2023, "Concurrent Composition for Interactive Differential Privacy with
  Adaptive Privacy-Loss Parameters", for Rényi DP of a fixed order): events have a single order in time.
- A run that ends early returns what it did not use: only what was actually done is in the sum, and stopping is
  a choice like any other. Until then a reservation keeps the sum, including open runs, within the limit.
- Stopping only when EVERY order of a grid has exceeded its own limit proves nothing: which order holds then
  depends on the outputs, and δ would have to be split among them. Nor may the order be chosen again later.
- The budget cannot change once a query has been made: a lower one would not have stopped the runs before it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from curriculumdp.privacy.accountant import AccountingError, check_delta, epsilon, rdp_curve
from curriculumdp.privacy.calibrate import check_budget, solve_noise_multiplier
from curriculumdp.privacy.event import MAX_NOISE_MULTIPLIER, PrivacyEvent

# Integer orders: their divergence is a finite binomial sum, without the series that fractional orders need.
ORDERS = range(2, 1025)
# An order below a Gaussian's best costs long runs little and helps low sample rates with little noise, whose
# divergences explode with the order: the lowest order that leaves a Gaussian this fraction of the max room.
KEPT = 0.9
# The rounding error of the divergences of up to 10⁶ uses is below this fraction of any limit.
ROUNDING = 1e-6
# Values of two digits that are tried, downwards, for the ε that fits: the accountants differ by less than the second.
TRIES = 3


class RenyiFilter:
    """Decides whether events chosen one after another stay within (`budget`, `delta`) together.

    `order`: the order fixed for this data set; if omitted, it is fixed now. Raises AccountingError if no integer order
    up to 1024 leaves a limit above 0, that is, if the budget is tiny for its δ.
    """

    def __init__(self, budget: float, delta: float, order: int | None = None) -> None:
        check_budget(budget)
        check_delta(delta)
        self.budget, self.delta = budget, delta
        self.order = order or self._default_order()
        self.limit = self._limit(self.order) * (1 - ROUNDING)

    def _default_order(self) -> int:
        room = {alpha: self._limit(alpha) / alpha for alpha in ORDERS}  # how much of a Gaussian fits
        best = max(room.values())
        if best <= 0:
            raise AccountingError(
                f"the budget ε is {self.budget!r} at δ = {self.delta:g}: too small for a limit on many runs; "
                "raise it"
            )
        return next(alpha for alpha in ORDERS if room[alpha] >= KEPT * best)

    def _limit(self, alpha: int) -> float:
        """Return B(α). A Gaussian's divergence is α/2σ², so the order with the largest B(α)/α has most room for it."""
        return self.budget - math.log1p(-1 / alpha) + math.log(alpha * self.delta) / (alpha - 1)

    def share(self, events: Sequence[PrivacyEvent]) -> float:
        """Return the fraction of the limit that `events`, with all their uses, take. Fractions add up."""
        return max(0.0, float(rdp_curve(events, [self.order])[0])) / self.limit

    def fitting_epsilon(self, planned: Sequence[PrivacyEvent], share: float) -> str | None:
        """Return the largest ε, to two digits, at which this plan fits into `share` of the limit, or None.

        At another ε the plan keeps its queries and changes the noise multiplier of DP-SGD, its last row. The result is
        solved and checked against `share`: four to eight evaluations of the accountant, a second each.
        """
        *fixed, last = planned
        if last.name != "private":
            return None
        noise = self._fitting_noise(fixed, last, share)
        if noise is None:
            return None
        try:
            most = epsilon([*fixed, replace(last, noise_multiplier=noise)], self.delta)
            for _ in range(TRIES):
                text = _floored(most)
                solved = solve_noise_multiplier(fixed, last.sample_rate, last.count, float(text), self.delta)
                if self.share([*fixed, replace(last, noise_multiplier=solved)]) <= share:
                    return text
                most = float(text) * (1 - ROUNDING)
        except AccountingError:  # the queries alone cost more than the plan's ε, rounded down
            pass
        return None

    def _fitting_noise(self, fixed: Sequence[PrivacyEvent], last: PrivacyEvent, share: float) -> float | None:
        """Return the smallest noise multiplier of `last`, to 0.01 %, with which it and `fixed` take at most `share`."""

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
    """Return two significant digits as text, never above the value."""
    if value <= 0:
        raise AccountingError("nothing is left")
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{float(f'{math.floor(value / unit) * unit:.2g}'):g}"
