"""Two libraries over a grid of runs: what we certify is never below what the other one proves, and close to it.

dp_accounting's loss distributions give our ε; Opacus knows nothing of them. Its PRV gives an interval that
holds the true ε (in the direction that removes a unit), its RDP an upper bound.
"""

import itertools
import math

import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from curriculumdp.privacy.accountant import (
    DISCRETISATION,
    MAX_EPSILON_RDP,
    AccountingError,
    epsilon,
    epsilon_opacus_rdp,
    epsilon_prv,
    epsilon_rdp,
    rdp_curve,
)
from curriculumdp.privacy.calibrate import MAX_BUDGET, solve_noise_multiplier
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.release.certificate import (
    CertificateError,
    CertifiedEvent,
    Guarantee,
    PublicFacts,
    account,
)
from tests.privacy.losses_by_fft import epsilon_by_fft

DELTA = 1e-5
RATES = (1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0)
MULTIPLIERS = (0.3, 0.6, 1.0, 2.0, 5.0, 12.0, 50.0)
STEPS = (1, 10, 100, 1000, 10_000, 100_000)
CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 5)


def dp_sgd(rate: float, sigma: float, steps: int) -> PrivacyEvent:
    return PrivacyEvent("private", "subsampled_gaussian", rate, sigma, steps)


def runs() -> list[list[PrivacyEvent]]:
    """Every run of the grid, every second one with a central phase before it."""
    cells = itertools.product(enumerate(RATES), enumerate(MULTIPLIERS), enumerate(STEPS))
    return [
        [CENTRAL, dp_sgd(rate, sigma, steps)] if (i + j + k) % 2 else [dp_sgd(rate, sigma, steps)]
        for (i, rate), (j, sigma), (k, steps) in cells
    ]


def name_of(run: list[PrivacyEvent]) -> str:
    last = run[-1]
    before = "central+" if len(run) > 1 else ""
    return f"{before}{last.sample_rate:g}-{last.noise_multiplier:g}-{last.count}"


def agrees(run: list[PrivacyEvent]) -> None:
    """Both libraries say the same of a run, or both that it protects nobody."""
    above = epsilon_opacus_rdp(run, DELTA)
    if epsilon_rdp(run, DELTA) > MAX_EPSILON_RDP:
        assert above > MAX_BUDGET  # no budget is lost that a config may ask for
        for method in (epsilon, epsilon_prv):
            with pytest.raises(AccountingError, match="ε = 300 by RDP"):
                method(run, DELTA)
        return
    ours, (low, estimate, high) = epsilon(run, DELTA), epsilon_prv(run, DELTA)
    # Losses are rounded up to the grid so that their mean stays: what is left of it adds up like a random walk.
    grid = DISCRETISATION * math.sqrt(sum(event.count for event in run))
    assert low <= ours
    assert ours <= min(high, above) + grid
    if estimate > 0.05 and grid < 0.02 * estimate:
        assert ours == pytest.approx(estimate, rel=0.02, abs=0.011)


# Corners and a diagonal: cheap, expensive, refused, weaker than the grid's step, with and without a first phase.
QUICK = [run for number, run in enumerate(runs()) if number % 23 == 7]


@pytest.mark.parametrize("run", QUICK, ids=map(name_of, QUICK))
def test_two_libraries_agree_on_a_run(run: list[PrivacyEvent]) -> None:
    agrees(run)


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_two_libraries_agree_over_the_whole_grid(rate: float) -> None:
    for run in runs():
        if run[-1].sample_rate == rate:
            agrees(run)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_the_second_accountant_of_these_tests_knows_one_step_exactly(rate: float, sigma: float) -> None:
    """`losses_by_fft` rounds to nearest; a single step's δ(ε) has a closed form that needs no grid."""
    found = epsilon_by_fft([(rate, sigma, 1)], DELTA, reach=32)
    assert exact_delta(rate, sigma, found + 2e-4) < DELTA < exact_delta(rate, sigma, found - 2e-4)
    assert exact_delta(rate, sigma, epsilon([dp_sgd(rate, sigma, 1)], DELTA)) <= DELTA


def exact_delta(rate: float, sigma: float, eps: float) -> float:
    """δ(ε) of one subsampled Gaussian step in the direction that removes a unit: two normal tails."""
    x = sigma**2 * math.log((math.expm1(eps) + rate) / rate) + 0.5
    above = (1 - rate) * norm.sf(x / sigma) + rate * norm.sf((x - 1) / sigma)
    return float(above - math.exp(eps) * norm.sf(x / sigma))


# --- where the second library fails


@pytest.mark.parametrize("delta", [1e-10, 9.9e-9])
def test_an_interval_that_rounding_has_moved_is_not_taken_for_proof(delta: float) -> None:
    """At δ = 1e-10 Opacus's PRV gave [2.018, 2.038] for one step (and an idle other) that costs 2.0118 exactly."""
    rate, sigma = 0.38500255443157483, 2.092203371814163
    step = dp_sgd(rate, sigma, 1)
    assert exact_delta(rate, sigma, epsilon([step], delta)) <= delta
    with pytest.raises(AccountingError, match="PRV is accurate only from 1e-08 up") as refusal:
        epsilon_prv([step], delta)
    assert "\n" not in str(refusal.value)


def test_a_run_that_only_the_first_library_can_account_for_is_still_certified() -> None:
    """Its RDP is above the budget, as for every solved run: an upper bound is no contradiction."""
    delta = 1e-9
    sigma = solve_noise_multiplier([CENTRAL], 0.1, 50, 2.0, delta)
    promise = guarantee(2.0, delta, sigma)
    found = account(promise)
    assert found.opacus_prv is None
    assert found.epsilon_of_events <= 2.0 < found.opacus_rdp
    with pytest.raises(CertificateError, match="by PLD"):
        account(guarantee(1.99, delta, sigma))


def guarantee(promised: float, delta: float, sigma: float) -> Guarantee:
    rows = [
        CertifiedEvent(
            name=r.name,
            mechanism=r.mechanism,
            sample_rate=r.sample_rate,
            noise_multiplier=r.noise_multiplier,
            clip_norm=1.0,
            count=r.count,
        )
        for r in (CENTRAL, dp_sgd(0.1, sigma, 50))
    ]
    return Guarantee(
        epsilon=promised,
        delta=delta,
        unit="one image",
        public=PublicFacts(units=100, classes=2, image_shape=(1, 8, 8)),
        events=tuple(rows),
        stopped="planned",
        private_metrics_shown=False,
    )


# --- published


@pytest.mark.parametrize(
    ("sigma", "epochs", "published"), [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)]
)
def test_the_mnist_table_of_tensorflow_privacy_is_reproduced(
    sigma: float, epochs: int, published: float
) -> None:
    """Its tutorials' README: batches of 256 of 60,000, δ = 1e-5, by Rényi orders and Mironov's conversion of 2017."""
    run = [dp_sgd(256 / 60_000, sigma, epochs * 60_000 // 256)]
    orders = np.array(RdpAccountant().orders)
    classical = float(np.min(rdp_curve(run) + math.log(1 / DELTA) / (orders - 1)))
    assert classical == pytest.approx(published, abs=0.006)
    assert 0.7 * published < epsilon(run, DELTA) < epsilon_rdp(run, DELTA) < published


@pytest.mark.parametrize(
    ("central", "rate", "steps", "by_rdp", "true"),
    [
        ((5.0, 0.0083, 50), 4096 / 60_000, 2197, 13.018, 0.9145),
        ((5.0, 0.0083, 50), 4096 / 60_000, 2197, 1.8549, 9.275),
        ((5.0, 0.1, 5), 1 / 15, 2250, 13.084, 0.914),
        ((5.0, 0.1, 50), 1 / 15, 2250, 15.981, 0.913),
    ],
)
def test_what_the_papers_runs_truly_cost_at_the_noise_that_rdp_asked_for(
    central: tuple[float, float, int], rate: float, steps: int, by_rdp: float, true: float
) -> None:
    sigma, query_rate, queries = central
    run = [
        PrivacyEvent("central", "subsampled_gaussian", query_rate, sigma, queries),
        dp_sgd(rate, by_rdp, steps),
    ]
    assert epsilon(run, DELTA) == pytest.approx(true, rel=1e-3)


# --- properties of whole calibrations

budgets = st.floats(0.5, 4.0)
rates = st.sampled_from([0.01, 0.1, 1.0])
lengths = st.integers(10, 500)


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(budget=budgets, rate=rates, steps=lengths, more=st.floats(1.2, 3.0))
def test_solved_noise_falls_with_the_budget_and_rises_with_all_else(
    budget: float, rate: float, steps: int, more: float
) -> None:
    """To the solver's own width of 0.01 %."""

    def noise(**changes: float) -> float:
        asked = {"rate": rate, "steps": steps, "budget": budget, "delta": DELTA} | changes
        return solve_noise_multiplier(
            [CENTRAL], asked["rate"], int(asked["steps"]), asked["budget"], asked["delta"]
        )

    solved, slack = noise(), 1 + 1e-3
    assert noise(budget=budget * more) <= solved * slack
    assert noise(delta=DELTA * more) <= solved * slack
    assert noise(steps=steps * more) >= solved / slack
    assert noise(rate=min(1.0, rate * more)) >= solved / slack
    assert solve_noise_multiplier([], rate, steps, budget, DELTA) <= solved * slack


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from([0.01, 0.1, 1.0]), st.floats(5.0, 40.0), st.integers(1, 60)),
        min_size=2,
        max_size=4,
    ),
    order=st.randoms(use_true_random=False),
)
def test_many_phases_cost_the_same_in_any_order_and_never_more_than_apart(
    parts: list[tuple[float, float, int]], order: object
) -> None:
    phases = [PrivacyEvent(f"phase{i}", "subsampled_gaussian", *part) for i, part in enumerate(parts)]
    together = epsilon(phases, DELTA)
    order.shuffle(phases)  # type: ignore[attr-defined]
    assert epsilon(phases, DELTA) == pytest.approx(together, rel=1e-6, abs=1e-8)
    assert together <= sum(epsilon([phase], DELTA / len(phases)) for phase in phases) + 1e-9
    assert together >= max(epsilon([phase], DELTA) for phase in phases) - 1e-9
    assert epsilon(phases[:-1], DELTA) <= together + 1e-9
