"""Calibration gives the least noise that keeps the whole run, central phase included, within the budget."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculumdp.privacy.accountant import AccountingError, epsilon
from curriculumdp.privacy.calibrate import (
    BudgetTooSmall,
    solve_noise_multiplier,
    solve_noise_multiplier_rdp,
)
from curriculumdp.privacy.event import PrivacyEvent


def dp_sgd(rate: float, sigma: float, count: int, name: str = "private") -> PrivacyEvent:
    return PrivacyEvent(name, "subsampled_gaussian", rate, sigma, count)


def central(sigma: float, rate: float, count: int) -> list[PrivacyEvent]:
    return [dp_sgd(rate, sigma, count, "central")]


# Runs of the paper: what is fixed, rate, steps, ε, σ by PLD, σ by RDP; δ = 1e-5. Measured once with
# dp_accounting's own calibration from a wide bracket, and with Opacus.
KNOWN = [
    (central(5, 0.0083, 50), 4096 / 60000, 2197, 1, 12.004, 13.018),
    (central(5, 0.0083, 50), 4096 / 60000, 2197, 10, 1.7598, 1.8549),
    (central(5, 0.1, 5), 1 / 15, 2250, 1, 12.031, 13.084),
    (central(5, 0.1, 5), 1 / 15, 2250, 10, 1.7426, 1.8366),
    (central(5, 0.1, 50), 1 / 15, 2250, 1, 14.123, 15.981),
]


@pytest.mark.parametrize(("fixed", "rate", "steps", "budget", "by_pld", "by_rdp"), KNOWN)
def test_the_noise_of_the_papers_runs_is_the_known_one(
    fixed: list[PrivacyEvent], rate: float, steps: int, budget: float, by_pld: float, by_rdp: float
) -> None:
    found = solve_noise_multiplier(fixed, rate, steps, budget, 1e-5)
    assert found == pytest.approx(by_pld, rel=3e-4)
    assert solve_noise_multiplier_rdp(fixed, rate, steps, budget, 1e-5) == pytest.approx(by_rdp, rel=2e-3)
    assert epsilon([*fixed, dp_sgd(rate, found, steps)], 1e-5) <= budget
    assert epsilon([*fixed, dp_sgd(rate, 0.999 * found, steps)], 1e-5) > budget


def test_the_central_phase_raises_the_noise_by_what_it_costs() -> None:
    alone = solve_noise_multiplier([], 1 / 15, 2250, 1, 1e-5)
    for fixed, price in ((central(5, 0.1, 5), 1.015), (central(5, 0.1, 50), 1.19)):
        with_it = solve_noise_multiplier(fixed, 1 / 15, 2250, 1, 1e-5)
        assert with_it / alone == pytest.approx(price, abs=0.005)


@settings(max_examples=8, deadline=None)
@given(
    rate=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
    steps=st.integers(20, 300),
    budget=st.floats(0.3, 2.0),
    delta=st.sampled_from([1e-4, 1e-6, 1e-9]),
    queries=st.integers(0, 5),
)
def test_the_budget_is_never_passed_and_never_left_unused(
    rate: float, steps: int, budget: float, delta: float, queries: int
) -> None:
    fixed = central(60.0, 0.1, queries)
    found = solve_noise_multiplier(fixed, rate, steps, budget, delta)
    assert epsilon([*fixed, dp_sgd(rate, found, steps)], delta) <= budget
    assert epsilon([*fixed, dp_sgd(rate, max(0.1, found * 0.999), steps)], delta) > budget or found == 0.1


def test_two_machines_rounding_cannot_put_the_plan_above_its_budget() -> None:
    found = solve_noise_multiplier([], 1 / 15, 2250, 1, 1e-5)
    assert epsilon([dp_sgd(1 / 15, found, 2250)], 1e-5) <= 1 - 5e-7


def test_a_budget_that_the_queries_alone_spend_is_refused_with_both_numbers() -> None:
    for ask in (solve_noise_multiplier, solve_noise_multiplier_rdp):
        with pytest.raises(
            BudgetTooSmall, match=r"central alone costs ε = 0\.5.* budget of 0\.5:"
        ) as refusal:
            ask(central(5, 0.1, 50), 1 / 15, 2250, 0.5, 1e-5)
        assert "\n" not in str(refusal.value)


def test_a_budget_that_only_rdp_thinks_spent_is_solved() -> None:
    fixed = central(5, 0.1, 50)  # ε = 0.526 by PLD, 0.58 by RDP
    with pytest.raises(BudgetTooSmall):
        solve_noise_multiplier_rdp(fixed, 1 / 15, 2250, 0.53, 1e-5)
    found = solve_noise_multiplier(fixed, 1 / 15, 2250, 0.53, 1e-5)
    assert 0.5299 < epsilon([*fixed, dp_sgd(1 / 15, found, 2250)], 1e-5) <= 0.53


def test_a_run_so_weak_that_the_grid_rules_gets_more_noise_than_rdp_asks_for() -> None:
    by_rdp = solve_noise_multiplier_rdp([], 1e-4, 10**6, 0.05, 1e-5)
    found = solve_noise_multiplier([], 1e-4, 10**6, 0.05, 1e-5)
    assert found > by_rdp
    assert epsilon([dp_sgd(1e-4, found, 10**6)], 1e-5) <= 0.05


@pytest.mark.slow
def test_a_step_that_hides_behind_delta_still_gets_noise() -> None:
    assert solve_noise_multiplier([], 1e-7, 1, 90, 1e-5) == 0.1


@pytest.mark.parametrize("budget", [0, -1, 101, math.nan, math.inf, None, "1"])
def test_a_budget_that_is_no_budget_is_refused(budget: float) -> None:
    for ask in (solve_noise_multiplier, solve_noise_multiplier_rdp):
        with pytest.raises(AccountingError, match="budget ε is"):
            ask([], 0.1, 10, budget, 1e-5)


@pytest.mark.parametrize(
    ("rate", "steps", "delta", "named"),
    [
        (0, 10, 1e-5, "sample_rate"),
        (1.5, 10, 1e-5, "sample_rate"),
        (0.1, -1, 1e-5, "count"),
        (0.1, 9, 0, "δ"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(
    rate: float, steps: int, delta: float, named: str
) -> None:
    with pytest.raises(AccountingError, match=named):
        solve_noise_multiplier([], rate, steps, 1.0, delta)
