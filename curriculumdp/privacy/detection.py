"""What ε means to an attacker: how often a test for one unit's presence can succeed, at most. PUBLIC arithmetic."""

import math
from collections.abc import Sequence

from curriculumdp.privacy.accountant import compose, losses
from curriculumdp.privacy.event import PrivacyEvent

ALARMS = (0.001, 0.01, 0.1)  # the false alarm rates that plan and report show
CURVE_POINTS = 30


def detection_bound(events: Sequence[PrivacyEvent], epsilon: float, alarms: Sequence[float]) -> list[float]:
    """Return the highest detection rate of any test for a unit's presence, one for each false alarm rate α.

    It is the minimum of e^ε·α + δ(ε) and 1 − e^−ε·(1 − δ(ε) − α) over points on the events' curve δ(ε) up to twice
    `epsilon` (Kairouz et al. 2015, theorem 2.1), which is tighter than at one (ε, δ) alone. Takes seconds.
    """
    total = compose(map(losses, events))
    curve = [
        (point, float(total.get_delta_for_epsilon(point)))
        for point in (2 * epsilon * part / (CURVE_POINTS - 1) for part in range(CURVE_POINTS))
    ]
    return [min(_bound(point, delta, rate) for point, delta in curve) for rate in alarms]


def _bound(epsilon: float, delta: float, alarms: float) -> float:
    growth = math.exp(min(epsilon, 700.0))  # e^700 is close to the largest float
    return min(1.0, max(0.0, min(growth * alarms + delta, 1 - (1 - delta - alarms) / growth)))


def at_most(rate: float) -> str:
    """Return a detection rate as text, rounded up."""
    return "nearly all" if rate > 0.999 else f"{math.ceil(1000 * rate - 1e-9) / 10:.1f}%"
