"""ε is what two libraries, a calculation made for this test, and published figures say it is."""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from curriculumdp.privacy.accountant import (
    ACCOUNTANT,
    AccountingError,
    epsilon,
    epsilon_opacus_rdp,
    epsilon_path,
    epsilon_prv,
    epsilon_rdp,
    epsilon_replace_one,
    rdp_curve,
)
from curriculumdp.privacy.event import PrivacyEvent
from tests.privacy.losses_by_fft import epsilon_by_fft


def dp_sgd(rate: float, sigma: float, count: int, name: str = "private") -> PrivacyEvent:
    return PrivacyEvent(name, "subsampled_gaussian", rate, sigma, count)


def central(sigma: float, rate: float, count: int) -> PrivacyEvent:
    return dp_sgd(rate, sigma, count, "central")


# Whole runs, with the ε that each was calibrated for, at its δ (PLD).
RUNS = {
    "mnist at 1": ([central(5, 0.1, 5), dp_sgd(1 / 15, 12.031, 2250)], 1e-5, 1.0),
    "mnist at 10": ([central(5, 0.1, 5), dp_sgd(1 / 15, 1.7426, 2250)], 1e-5, 10.0),
    "many queries": ([central(5, 0.1, 50), dp_sgd(1 / 15, 14.123, 2250)], 1e-5, 1.0),
    "rare queries": ([central(5, 0.0083, 50), dp_sgd(4096 / 60000, 12.004, 2197)], 1e-5, 1.0),
}
each_run = pytest.mark.parametrize(("events", "delta", "known"), RUNS.values(), ids=RUNS.keys())

small_runs = st.builds(
    dp_sgd,
    st.sampled_from([0.004, 0.05, 0.3, 1.0]),
    st.floats(4.0, 20.0),
    st.integers(1, 100),
)


@each_run
def test_pld_gives_the_known_cost_of_the_papers_runs(
    events: list[PrivacyEvent], delta: float, known: float
) -> None:
    assert epsilon(events, delta) == pytest.approx(known, rel=5e-4)


@each_run
def test_a_calculation_that_shares_no_code_agrees(
    events: list[PrivacyEvent], delta: float, known: float
) -> None:
    parts = [(r.sample_rate, r.noise_multiplier, r.count) for r in events]
    assert epsilon(events, delta) == pytest.approx(epsilon_by_fft(parts, delta, 8 + 4 * known), rel=1e-3)


@each_run
def test_opacus_prv_agrees_within_two_percent(events: list[PrivacyEvent], delta: float, known: float) -> None:
    low, estimate, high = epsilon_prv(events, delta)
    assert low <= epsilon(events, delta) <= high
    assert estimate == pytest.approx(known, rel=0.02)
    assert high - low < max(0.03, 0.005 * known)


@each_run
def test_the_two_rdp_accountants_agree_and_are_looser(
    events: list[PrivacyEvent], delta: float, known: float
) -> None:
    assert epsilon_rdp(events, delta) == pytest.approx(epsilon_opacus_rdp(events, delta), rel=0.01)
    assert known < epsilon_rdp(events, delta) < 1.2 * known


@pytest.mark.parametrize(
    ("event", "delta", "by_rdp"),
    [
        (central(5, 0.1, 5), 1e-5, 0.188),
        (central(10, 0.0657, 250), 1e-6, 0.455),
        (central(10, 0.04, 250), 1e-6, 0.270),
    ],
)
def test_the_central_phase_of_the_papers_runs_costs_what_is_known(
    event: PrivacyEvent, delta: float, by_rdp: float
) -> None:
    assert epsilon_rdp([event], delta) == pytest.approx(by_rdp, abs=6e-4)
    assert 0.5 * by_rdp < epsilon([event], delta) < by_rdp


def test_the_moments_accountant_of_abadi_et_al_is_reproduced() -> None:
    # "Deep Learning with Differential Privacy" (2016), section 3: q = 0.01, σ = 4, 10,000 steps, δ = 1e-5: 1.26.
    run, delta = dp_sgd(0.01, 4.0, 10_000), 1e-5
    orders = RdpAccountant().orders
    classical = np.min(rdp_curve([run]) + math.log(1 / delta) / (orders - 1))
    assert classical == pytest.approx(1.26, abs=0.005)
    assert 0.8 < epsilon([run], delta) < epsilon_rdp([run], delta) < classical


@pytest.mark.parametrize("sigma", [0.5, 2.0, 30.0])
def test_without_sampling_the_exact_gaussian_curve_holds(sigma: float) -> None:
    # Balle and Wang 2018, theorem 8: δ(ε) = Φ(1/2s − εs) − e^ε Φ(−1/2s − εs), for s = σ/√count.
    spread = sigma / math.sqrt(7)
    found = epsilon([PrivacyEvent("central", "gaussian", 1.0, sigma, 7)], 1e-5)
    exact = ndtr(0.5 / spread - found * spread) - math.exp(found) * ndtr(-0.5 / spread - found * spread)
    assert exact == pytest.approx(1e-5, rel=1e-3)
    assert exact <= 1e-5


def test_zero_out_costs_what_add_or_remove_does_and_replace_one_about_twice() -> None:
    for (events, delta, known), twice in zip(list(RUNS.values())[:2], (2.1, 21), strict=True):
        zero_out = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
        for event in events:
            gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
            zero_out.compose(dp_accounting.PoissonSampledDpEvent(event.sample_rate, gaussian), event.count)
        assert zero_out.get_epsilon(delta) == pytest.approx(epsilon(events, delta), rel=1e-6)
        assert epsilon_replace_one(events, delta) == pytest.approx(twice, rel=0.03)
        assert epsilon_replace_one(events, delta) > known


def test_both_directions_of_adjacency_count() -> None:
    # One step of strong sampling: removing a unit shows more than adding one, and the larger must be reported.
    step = dp_sgd(0.3, 1.0, 1)
    assert epsilon([step], 1e-5) == pytest.approx(epsilon_by_fft([(0.3, 1.0, 1)], 1e-5, 16), rel=1e-3)
    assert epsilon([step], 1e-5) > 1.5 * -math.log(1 - 0.3)  # which bounds what adding one can show


def test_nothing_released_costs_nothing() -> None:
    unused = replace(dp_sgd(0.5, 1.0, 1), count=0)
    for method in (epsilon, epsilon_rdp, epsilon_opacus_rdp, epsilon_replace_one):
        assert method([], 1e-5) == 0.0
        assert method([unused], 1e-5) == 0.0
    assert epsilon_prv([unused], 1e-5) == (0.0, 0.0, 0.0)
    assert epsilon([unused, dp_sgd(0.1, 2, 3)], 1e-5) == epsilon([dp_sgd(0.1, 2, 3)], 1e-5)


@settings(max_examples=8, deadline=None)
@given(run=small_runs, other=small_runs)
def test_pld_never_passes_rdp_and_composition_has_no_order(run: PrivacyEvent, other: PrivacyEvent) -> None:
    together = epsilon([run, other], 1e-5)
    assert together <= epsilon_rdp([run, other], 1e-5) + 1e-9
    assert together == pytest.approx(epsilon([other, run], 1e-5), rel=1e-6, abs=1e-9)
    assert max(epsilon([run], 1e-5), epsilon([other], 1e-5)) <= together + 1e-9
    assert together <= epsilon([run], 5e-6) + epsilon([other], 5e-6) + 1e-9  # basic composition


@settings(max_examples=8, deadline=None)
@given(run=small_runs, more=st.floats(1.01, 3.0))
def test_more_noise_costs_less_and_more_of_anything_else_costs_more(run: PrivacyEvent, more: float) -> None:
    cost, slack = epsilon([run], 1e-5), 1e-9
    assert epsilon([replace(run, noise_multiplier=run.noise_multiplier * more)], 1e-5) <= cost + slack
    assert epsilon([replace(run, count=run.count + 1)], 1e-5) >= cost - slack
    assert epsilon([replace(run, sample_rate=min(1.0, run.sample_rate * more))], 1e-5) >= cost - slack
    assert epsilon([run], 1e-4) <= cost + slack


@settings(max_examples=8, deadline=None)
@given(run=small_runs, share=st.floats(0, 1))
def test_a_release_in_two_entries_costs_what_it_does_in_one(run: PrivacyEvent, share: float) -> None:
    first = round(share * run.count)
    split = [replace(run, count=first), replace(run, count=run.count - first)]
    assert epsilon(split, 1e-5) == pytest.approx(epsilon([run], 1e-5), rel=1e-5, abs=1e-8)


def test_a_path_gives_the_cost_of_each_prefix() -> None:
    run = [central(5, 0.1, 5), dp_sgd(1 / 15, 12.0, 20)]
    path = epsilon_path(run, [0, 3, 5, 6, 25], 1e-5)
    prefixes = [[], [replace(run[0], count=3)], run[:1], [run[0], replace(run[1], count=1)], run]
    assert path == pytest.approx([epsilon(prefix, 1e-5) for prefix in prefixes], rel=1e-6)
    assert path == sorted(path)


@pytest.mark.parametrize("delta", [0, -1e-5, 1, 2, 1e-11, 1e-16, math.nan, math.inf, None, "1e-5"])
@pytest.mark.parametrize(
    "method", [epsilon, epsilon_rdp, epsilon_opacus_rdp, epsilon_prv, epsilon_replace_one]
)
def test_a_delta_that_libraries_answer_wrongly_is_refused_in_one_line(
    method: Callable[[list[PrivacyEvent], float], object], delta: float
) -> None:
    with pytest.raises(AccountingError, match="δ is") as refusal:
        method([dp_sgd(0.1, 5.0, 5)], delta)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("events", [[dp_sgd(1.0, 0.1, 10**6)], [dp_sgd(0.5, 0.5, 10**5)] * 3])
def test_hopeless_runs_are_refused_at_once(events: list[PrivacyEvent]) -> None:
    for method in (epsilon, epsilon_prv, epsilon_replace_one):
        began = time.process_time()
        with pytest.raises(AccountingError, match="ε = 300"):
            method(events, 1e-5)
        assert time.process_time() - began < 10


def test_the_accountants_name_states_library_version_and_grid() -> None:
    assert (
        f"dp_accounting {version('dp-accounting')} PLD, discretisation 1e-4, tilted convolution" == ACCOUNTANT
    )


def test_accounting_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from curriculumdp.privacy.calibrate import solve_noise_multiplier\n"
        "from curriculumdp.privacy.accountant import epsilon\n"
        "from curriculumdp.privacy.event import PrivacyEvent\n"
        "print(epsilon([PrivacyEvent('central', 'gaussian', 1.0, 5.0, 1)], 1e-5))\n"
        "assert not {'torch', 'opacus', 'curriculumdp.config.config'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) == pytest.approx(0.7255, abs=1e-3)
