"""The audit's lower bounds: against closed forms, an independent implementation, and mechanisms whose ε is known."""

import math
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from scipy.special import ndtr

from curriculumdp.audit.bounds import (
    bounds_of_many_runs,
    bounds_of_one_run,
    epsilon_of_errors,
    epsilon_of_mu,
    mu_of_errors,
    one_run_epsilon,
    one_run_mu,
    one_run_p_value,
    upper_rate,
)

# canaries, guesses, right, δ: ε by Steinke et al. and by Mahloujifar et al. (Gaussian) at significance 0.05, as
# google-deepmind/jax_privacy's auditing.py (2026) gives them, which shares no code with ours.
BY_JAX_PRIVACY = [
    (1000, 1000, 1000, 1e-6, 5.806397, 13.514245),
    (1000, 1000, 1000, 1e-4, 5.529350, 11.013509),
    (1000, 500, 500, 1e-6, 5.111742, 10.913089),
    (1000, 500, 500, 1e-4, 4.833513, 8.805904),
    (1000, 1000, 550, 1e-4, 0.091824, 0.147020),
    (1000, 100, 99, 1e-6, 3.017698, 5.269840),
    (1000, 100, 99, 1e-4, 2.840964, 4.116276),
    (500, 250, 200, 1e-4, 1.112340, 1.728534),
    (1000, 300, 60, 1e-6, 0.0, 0.0),
]


@pytest.mark.parametrize(("canaries", "guesses", "right", "delta", "plain", "gaussian"), BY_JAX_PRIVACY)
def test_one_run_bounds_agree_with_another_implementation(
    canaries: int, guesses: int, right: int, delta: float, plain: float, gaussian: float
) -> None:
    assert one_run_epsilon(canaries, guesses, right, delta, 0.05) == pytest.approx(plain, abs=2e-6)
    mu = one_run_mu(canaries, guesses, right, 0.05)
    assert epsilon_of_mu(mu, delta) == pytest.approx(gaussian, abs=2e-5)


@pytest.mark.parametrize("guesses", [1, 30, 1000])
def test_all_guesses_right_at_pure_dp_has_a_closed_form(guesses: int) -> None:
    """(e^ε/(1 + e^ε))^r = significance."""
    rate = 0.05 ** (1 / guesses)
    expected = max(0.0, math.log(rate / (1 - rate)))
    assert one_run_epsilon(1000, guesses, guesses, 0.0, 0.05) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("guesses", "right"), [(5, 0), (5, 3), (12, 12), (20, 7)])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_the_p_value_is_the_theorems_sum(guesses: int, right: int, delta: float) -> None:
    """In exact arithmetic at e^ε = 3, that is a rate of 3/4."""
    weights = [
        math.comb(guesses, k) * Fraction(3, 4) ** k * Fraction(1, 4) ** (guesses - k)
        for k in range(guesses + 1)
    ]
    beta = sum(weights[right:])
    alpha = max((sum(weights[right - i : right]) / i for i in range(1, right + 1)), default=Fraction(0))
    expected = min(1.0, float(beta + alpha * Fraction(delta) * 2 * 40))
    assert one_run_p_value(40, guesses, right, math.log(3), delta) == pytest.approx(expected, rel=1e-12)


def test_clopper_pearson_has_its_textbook_values() -> None:
    assert upper_rate(0, 100, 0.05) == pytest.approx(1 - 0.05**0.01)
    assert upper_rate(7, 100, 0.025) == pytest.approx(0.138920, abs=1e-6)  # R: binom.test(7, 100)
    assert upper_rate(9, 9, 0.05) == 1.0
    assert upper_rate(0, 0, 0.05) == 1.0


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-3])
def test_a_gaussians_epsilon_is_the_accountants(mu: float, delta: float) -> None:
    epsilon = epsilon_of_mu(mu, delta)
    assert dp_accounting.get_sigma_gaussian(epsilon, delta) == pytest.approx(1 / mu, rel=1e-6)


def test_error_rates_on_a_known_curve_give_its_parameter_back() -> None:
    rate = 1 / (1 + math.e**2)  # randomised response at ε = 2
    assert epsilon_of_errors(rate, rate, 0.0) == pytest.approx(2.0)
    false_in = float(ndtr(-1.2))  # N(0, 1) above 1.2, N(2, 1) below it
    assert mu_of_errors(false_in, float(ndtr(1.2 - 2.0))) == pytest.approx(2.0)
    assert epsilon_of_errors(0.5, 0.5, 1e-5) == 0.0
    assert mu_of_errors(1.0, 0.0) == 0.0


def test_one_run_bounds_are_rarely_above_the_epsilon_of_randomised_response() -> None:
    """Each canary's coin is told truly with e^ε/(1 + e^ε), independently: the worst that ε-DP permits."""
    draw, epsilon, canaries, tries = np.random.default_rng(1), 1.0, 200, 400
    rate = 1 / (1 + math.exp(-epsilon))
    above = 0
    for right in draw.binomial(canaries, rate, tries):
        above += one_run_epsilon(canaries, canaries, int(right), 0.0, 0.05) > epsilon
    assert above <= 0.05 * tries + 3 * math.sqrt(0.05 * 0.95 * tries)
    assert above >= 0.01 * tries, "far too cautious a bound would see nothing"


@pytest.mark.parametrize("bounds_of", [bounds_of_one_run, bounds_of_many_runs])
def test_bounds_are_rarely_above_the_epsilon_of_a_gaussian(bounds_of) -> None:
    draw, mu, delta, tries = np.random.default_rng(2), 1.0, 1e-3, 100
    above, largest = 0, 0.0
    for _ in range(tries):
        included = draw.random(300) < 0.5
        seen = draw.standard_normal(300) + mu * included
        bounds = bounds_of(mu * seen - mu**2 / 2, included, delta, 0.05)
        above += max(bounds.plain, bounds.gaussian) > epsilon_of_mu(mu, delta)
        largest = max(largest, bounds.gaussian)
    assert above <= 2 * 0.05 * tries
    assert largest > 0.3 * epsilon_of_mu(mu, delta)


@pytest.mark.parametrize("bounds_of", [bounds_of_one_run, bounds_of_many_runs])
def test_scores_that_tell_nothing_show_nothing_and_perfect_ones_much(bounds_of) -> None:
    draw = np.random.default_rng(3)
    included = draw.random(400) < 0.5
    blind = bounds_of(draw.standard_normal(400), included, 1e-5, 0.05)
    assert blind.plain < 0.2
    assert blind.gaussian < 0.2
    sharp = bounds_of(np.where(included, 50.0, -50.0), included, 1e-5, 0.05)
    assert sharp.plain > 3
    assert sharp.gaussian > 6
