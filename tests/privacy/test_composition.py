"""ε is never below a contour integral's, which shares no arithmetic with it, and above it by the grid's share alone.

Rounding used to show: an untilted convolution of n uses is off by about n·2⁻⁵³, whatever δ is.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr

from curriculumdp.privacy.accountant import (
    DISCRETISATION,
    compose,
    epsilon,
    epsilon_path,
    epsilon_replace_one,
    losses,
)
from curriculumdp.privacy.calibrate import solve_noise_multiplier
from curriculumdp.privacy.composition import Direction, Part, convolved
from curriculumdp.privacy.event import PrivacyEvent
from tests.privacy.epsilon_by_contour import REPLACE, Contour, Uses, delta_by_contour, epsilon_by_contour

LONG = [((0.02, 4.790737539, 400_000), 20.047), ((0.02, 6.153008858, 200_000), 10.0037)]


def released(parts: Sequence[Uses]) -> list[PrivacyEvent]:
    return [PrivacyEvent(f"phase{i}", "subsampled_gaussian", *part) for i, part in enumerate(parts)]


def grids_share(parts: Sequence[Uses], delta: float) -> float:
    """What rounding a loss to its neighbours on the grid adds to ε: a variance of up to h²/4 per use, tilted."""
    slope = max(Contour(parts, pair, delta).slope for pair in ("removed", "added"))
    return 1.5 * (slope + 1) * sum(count for *_, count in parts) * DISCRETISATION**2 / 8


def is_certified_closely(parts: Sequence[Uses], delta: float) -> None:
    true, found = epsilon_by_contour(parts, delta), epsilon(released(parts), delta)
    assert true * (1 - 1e-9) <= found <= true * (1 + 1e-6) + grids_share(parts, delta)


@pytest.mark.parametrize(("part", "known"), LONG)
@pytest.mark.parametrize("points", [10, 16])
def test_the_contour_integral_reproduces_what_is_known_of_long_runs_on_two_grids(
    part: Uses, known: float, points: int
) -> None:
    assert epsilon_by_contour([part], 1e-10, points) == pytest.approx(known, abs=5e-5)
    assert epsilon_by_contour([part], 1e-10, points) == pytest.approx(
        epsilon_by_contour([part], 1e-10, 24), rel=1e-9
    )


@pytest.mark.parametrize(("count", "sigma"), [(20, 4.0), (2000, 40.0)])
@pytest.mark.parametrize("delta", [1e-5, 1e-10])
def test_gaussians_cost_what_their_closed_form_says(count: int, sigma: float, delta: float) -> None:
    spread = sigma / math.sqrt(count)

    def over(eps: float) -> float:
        logs = log_ndtr(0.5 / spread - eps * spread), eps + log_ndtr(-0.5 / spread - eps * spread)
        return float(logs[0] + math.log(-math.expm1(logs[1] - logs[0])) - math.log(delta))

    exact = brentq(over, 1e-3, 100, xtol=1e-13)
    assert epsilon_by_contour([(1.0, sigma, count)], delta) == pytest.approx(exact, rel=1e-6)
    found = epsilon([PrivacyEvent("central", "gaussian", 1.0, sigma, count)], delta)
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 1e-6)


QUICK = [
    ([LONG[0][0]], 1e-10),
    ([(0.5, 1000.0, 10**6)], 1e-10),
    ([(1e-5, 1.0, 10**6)], 1e-8),
    ([(1e-3, 1.0, 10_000)], 1e-10),
    ([(0.1, 5.0, 5), (1 / 15, 12.031, 2250)], 1e-5),
    ([(0.3, 40.0, 5000), (0.01, 2.0, 2000), (1.0, 30.0, 7)], 1e-9),
]


@pytest.mark.parametrize(("parts", "delta"), QUICK)
def test_a_run_is_certified_from_above_and_closely(parts: list[Uses], delta: float) -> None:
    is_certified_closely(parts, delta)


GRID = [
    (rate, factor * rate * math.sqrt(count), count)
    for rate in (1e-3, 0.02, 0.3, 0.9)
    for count in (100, 10_000, 10**6)
    for factor in (0.25, 2.0)
    if rate * count > 10 and factor * rate * math.sqrt(count) >= 0.6
]


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-10])
def test_the_whole_grid_is_certified_from_above_and_closely(delta: float) -> None:
    for number, part in enumerate(GRID):
        is_certified_closely([part, *[(0.1, 5.0, 50), (1.0, 20.0, 3)][: number % 3]], delta)


def test_replacing_a_unit_and_every_prefix_are_certified_from_above() -> None:
    parts = [(0.1, 10.0, 50), (0.01, 1.5, 3000)]
    true = epsilon_by_contour(parts, 1e-10, pairs=REPLACE)
    assert true <= epsilon_replace_one(released(parts), 1e-10) <= true * (1 + 1e-4)
    (half,) = epsilon_path(released(parts), [1550], 1e-10)
    true = epsilon_by_contour([parts[0], (0.01, 1.5, 1500)], 1e-10)
    assert true <= half <= true * (1 + 1e-4)


def test_solved_noise_keeps_to_the_budget_where_untilted_convolutions_did_not() -> None:
    sigma = solve_noise_multiplier([], 0.02, 400_000, 20.0, 1e-10)
    assert 19.99 < epsilon_by_contour([(0.02, sigma, 400_000)], 1e-10) <= 20.0
    steps = 2530  # the largest number at σ = 6
    true = [epsilon_by_contour([(0.02, 6.0, count)], 1e-10) for count in (steps, steps + 2)]
    assert true[0] <= epsilon(released([(0.02, 6.0, steps)]), 1e-10) <= 1.0 < true[1] + 1e-4


@pytest.mark.parametrize("part", [LONG[0][0], (0.5, 1000.0, 10**6)])
@pytest.mark.parametrize("slope", [2.0**-8, 0.25, 1.0])
def test_the_bound_on_rounding_holds_at_slopes_where_rounding_is_all_there_is(
    part: Uses, slope: float
) -> None:
    """Nothing is tilted enough there: tails are noise of both signs, and what is stated must cover it."""
    directions = losses(*released([part])).parts
    near = [10.0**-exponent for exponent in range(8, 30, 2)]
    for parts in directions:
        tilted = Direction(parts).tilted(slope)
        for delta in near:
            at = epsilon_by_contour([part], delta)
            least = min(Contour([part], pair, delta).delta_at(at) for pair in ("removed", "added"))
            assert tilted.delta(at) >= least


def test_what_rounding_adds_is_next_to_nothing_at_the_slope_that_is_used() -> None:
    direction = Direction(losses(*released([(0.02, 6.0, 400_000)])).parts[0])
    assert 400_000 * 2**-53 < direction.tilted(2.0).error < 1e-7
    at = direction.epsilon(1e-10)
    assert direction.delta(at) == pytest.approx(1e-10, rel=1e-5)
    assert direction.delta(at) <= 1e-10 * (1 + 1e-8)


def test_a_convolutions_rounding_is_counted_once_for_each_use() -> None:
    """A transform of 2¹⁶ cells has 16 stages of 8 units, and a power adds 16; no spectrum is smaller than 1."""
    (one,) = losses(*released([(0.02, 6.0, 1)])).parts[0]
    share, _ = one.tilted(2.0)
    for uses in (4000, 400_000):
        *_, error = convolved([replace(one, uses=uses)], [share], 2**16)
        assert uses * (8 * 16 + 16) * 2**-53 <= error <= uses * 1e-13


def test_delta_of_epsilon_is_the_same_curve_from_above() -> None:
    run = [(0.1, 5.0, 50), (0.02, 2.0, 2000)]
    curve = compose(map(losses, released(run)))
    for delta in (1e-2, 1e-5, 1e-12):
        at = epsilon_by_contour(run, delta)
        true = delta_by_contour(run, at, delta)
        assert true == pytest.approx(delta, rel=1e-5)
        assert true <= float(curve.get_delta_for_epsilon(at)) <= true * 1.003
    assert curve.get_delta_for_epsilon([0.5, 2.0])[1] == curve.get_delta_for_epsilon(2.0)
    assert compose([]).get_delta_for_epsilon(-1.0) == pytest.approx(-math.expm1(-1.0))


def test_mass_that_a_narrow_window_would_lose_or_fold_is_counted() -> None:
    """Two losses, exactly: δ(ε) is a binomial sum."""
    uses, rare = 60, 1e-3
    masses = np.zeros(5001)
    masses[0], masses[-1] = 1 - rare, rare
    found = Direction([Part(1e-4, -10, masses, 0.0, uses)])
    for at in (0.4, 0.9, 2.3):
        weights = [math.comb(uses, k) * rare**k * (1 - rare) ** (uses - k) for k in range(uses + 1)]
        sums = [(-10 * uses + 5000 * k) * 1e-4 for k in range(uses + 1)]
        exact = sum(w * -math.expm1(at - s) for w, s in zip(weights, sums, strict=True) if s > at)
        assert exact * (1 - 1e-12) <= found.delta(at) <= exact * (1 + 1e-5)


def test_an_infinite_loss_counts_where_the_finite_ones_cost_nothing() -> None:
    for part, delta in (
        (Part(9e-6, 1, np.array([1 - 0.9e-5]), 0.9e-5, 1), 1e-5),
        (Part(0.2, 1, np.array([0.7]), 0.3, 1), 0.35),
    ):
        direction = Direction([part])
        found = direction.epsilon(delta)
        assert found > 0
        assert direction.delta(found) <= delta * (1 + 1e-9)
