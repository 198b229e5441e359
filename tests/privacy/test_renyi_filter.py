"""The filter behind `data.budget`: whatever is chosen after what was seen, its limit is the budget at δ."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting.rdp import compute_epsilon
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

from curriculumdp.privacy.accountant import AccountingError, epsilon, losses
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.renyi_filter import RenyiFilter
from tests.support.budget import DELTA, PRIVATE, filling


@pytest.mark.parametrize("delta", [1e-4, 1e-5, 1e-9])
@pytest.mark.parametrize("budget", [0.05, 0.5, 1.0, 8.0, 10.0, 50.0, 100.0])
def test_the_limit_at_its_order_is_the_budget_at_delta(budget: float, delta: float) -> None:
    limit = RenyiFilter(budget, delta)
    found, _ = compute_epsilon([limit.order], [limit.limit], delta)
    assert found <= budget
    assert found == pytest.approx(budget, rel=1e-5)
    above, _ = compute_epsilon([limit.order], [limit.limit * 1.01], delta)
    assert above > budget


def renyi_by_quadrature(event: PrivacyEvent, order: int) -> float:
    """D_α of one use by integration, the larger of both directions: it shares nothing with the library."""
    rate, sigma = event.sample_rate, event.noise_multiplier

    def of(upper: Callable[[float], float], lower: Callable[[float], float]) -> float:
        def weighted(x: float) -> float:
            return math.exp(order * upper(x) + (1 - order) * lower(x))

        far = 12 * sigma + order + 1
        return math.log(quad(weighted, -far, far, limit=2000, epsabs=0, epsrel=1e-12)[0]) / (order - 1)

    def mixture(x: float) -> float:
        parts = [norm.logpdf(x, 0, sigma), norm.logpdf(x, 1, sigma)]
        return float(logsumexp(parts, b=[1 - rate, rate]))

    def plain(x: float) -> float:
        return float(norm.logpdf(x, 0, sigma))

    return max(of(mixture, plain), of(plain, mixture))


@pytest.mark.parametrize(
    "event",
    [
        replace(PRIVATE, count=1),
        PrivacyEvent("private", "subsampled_gaussian", 0.5, 2.0, 1),
        PrivacyEvent("private", "subsampled_gaussian", 1 / 15, 12.0, 1),
        PrivacyEvent("central", "gaussian", 1.0, 3.0, 1),
    ],
)
@pytest.mark.parametrize("budget", [1.0, 8.0, 30.0])
def test_a_share_is_the_divergence_of_the_fixed_order_in_the_worse_direction(
    event: PrivacyEvent, budget: float
) -> None:
    limit = RenyiFilter(budget, DELTA)
    expected = renyi_by_quadrature(event, limit.order) / limit.limit
    assert limit.share([event]) == pytest.approx(expected, rel=1e-6)
    assert limit.share([replace(event, count=7), event]) == pytest.approx(8 * expected, rel=1e-6)


@pytest.mark.parametrize("budget", [1.0, 3.0, 10.0])
def test_what_fills_the_limit_costs_at_most_the_budget_and_little_less(budget: float) -> None:
    full = filling(0.999, budget)
    cost = epsilon([full], DELTA)
    assert 0.85 * budget < cost <= budget


def test_costs_chosen_after_an_output_was_seen_keep_to_delta() -> None:
    """An adversary sees one Gaussian event and then takes whichever of two mechanisms hurts more there.

    Each fills what is left of the limit. δ(ε) is the mean over the first output of the second's δ(ε − loss).
    """
    budget = 2.0
    limit = RenyiFilter(budget, DELTA)
    half = math.sqrt(limit.order / limit.limit)  # σ of a Gaussian that takes half
    strong = PrivacyEvent("gaussian", "gaussian", 1.0, half, 1)
    rare = PrivacyEvent("rare", "subsampled_gaussian", 0.001, 0.8, 1)
    rare = replace(rare, count=int(0.5 / limit.share([rare])))
    assert limit.share([strong, strong]) <= 1.00001
    assert limit.share([strong, rare]) <= 1
    seconds = [losses(event) for event in (strong, rare)]
    outputs = np.linspace(8, -8, 801) * half + 1  # what is left of the budget rises
    weights = norm.pdf(outputs, 1, half) * (outputs[0] - outputs[1])
    left = budget - (2 * outputs - 1) / (2 * half**2)
    deltas = np.array([second.get_delta_for_epsilon(left) for second in seconds])
    fixed, adaptive = deltas @ weights, deltas.max(0) @ weights
    assert adaptive > 1.01 * fixed.max()
    assert adaptive <= DELTA


def test_the_price_of_choosing_as_one_goes_is_what_the_readme_says() -> None:
    """Runs of ε = 1 on Fashion-MNIST at the paper's settings: composition would take one in 1, and 11 in 4."""
    run = [
        PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 5),
        PrivacyEvent("private", "subsampled_gaussian", 1 / 15, 12.031, 2250),
    ]
    shares = {budget: RenyiFilter(budget, DELTA).share(run) for budget in (1.1, 1.15, 4.0)}
    assert shares[1.1] > 1 >= shares[1.15]
    assert 9 * shares[4.0] <= 1 < 10 * shares[4.0]


def test_a_budget_that_no_order_can_hold_is_refused() -> None:
    with pytest.raises(AccountingError, match="too small for a limit"):
        RenyiFilter(0.001, DELTA)
