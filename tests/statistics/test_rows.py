"""P4 by statistics: the samples of a run's steps are Poisson, unit by unit, pair by pair and step by step."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, chi2, geom

from curriculumdp.curriculum.plan import Plan
from curriculumdp.curriculum.run import Run
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.sampling import poisson_rows
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import one_process
from tests.support.levels import LEVEL, binomial_p, chi_square_p
from tests.support.runs import tiny

UNITS, STEPS, RATE = 500, 6000, 0.08
Table = NDArray[np.bool_]


def run_of(incarnation: str) -> Run:
    nobody = ImageSet(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64), 1)
    return Run(
        config=tiny("unused"),  # type: ignore[arg-type]
        plan=Plan((), 1.0, 1e-5, 1.0, "none"),
        world=one_process(),
        secret=RunSecret.from_bytes(bytes(range(40, 72))),
        images=nobody,
        incarnation=incarnation,
    )


def table_of(phase: str = "private", incarnation: str = "", steps: int = STEPS, rate: float = RATE) -> Table:
    """Which unit was in which step, bool [steps, UNITS]."""
    run, table = run_of(incarnation), np.zeros((steps, UNITS), bool)
    for step in range(steps):
        table[step, poisson_rows(run.rows_key(phase, step), UNITS, rate)] = True
    return table


@pytest.fixture(scope="module")
def included() -> Table:
    return table_of()


def marginals_p(table: Table) -> float:
    """Each unit's number of steps against Binomial(steps, rate), exactly."""
    return binomial_p(table.sum(0), len(table), RATE)


def sizes_p(table: Table) -> float:
    """The sizes of the samples against Binomial(units, rate)."""
    found = np.bincount(table.sum(1), minlength=UNITS + 1)
    return chi_square_p(found, len(table) * binom.pmf(np.arange(UNITS + 1), UNITS, RATE))


def pairs_p(table: Table) -> float:
    """How often any two units were together against Binomial(steps, rate²), exactly; 124,750 pairs share it."""
    counts = table.T.astype(np.float32) @ table.astype(np.float32)
    together = counts[np.triu_indices(UNITS, 1)].astype(np.int64)
    return binomial_p(together, len(table), RATE**2)


def gaps_p(table: Table) -> float:
    """How long a unit stays out: geometric, whatever the unit. The last, unfinished wait is left out."""
    _, steps = np.nonzero(table.T)
    units, _ = np.nonzero(table.T)
    waits = np.diff(steps)[np.diff(units) == 0]
    far = 200
    found = np.bincount(np.minimum(waits, far), minlength=far + 1)[1:]
    expected = np.append(geom.pmf(np.arange(1, far), RATE), geom.sf(far - 1, RATE))
    return chi_square_p(found, len(waits) * expected)


def steps_p(table: Table) -> float:
    """Overlaps of steps some distance apart against Binomial(·, rate²), exactly, each step in one pair only."""
    found = []
    for lag in (1, 2, 3, 12, 13, 100, 1000):
        blocks = table[: len(table) // (2 * lag) * 2 * lag].reshape(-1, 2, lag, UNITS)
        both = int((blocks[:, 0] & blocks[:, 1]).sum())
        found.append(binomial_p(both, blocks[:, 0].size, RATE**2))
    return min(1.0, len(found) * min(found))


def dispersion_p(table: Table) -> float:
    """Units between them: neither too equal (as epochs make them) nor too unequal."""
    spread = ((table.sum(0) - len(table) * RATE) ** 2).sum() / (len(table) * RATE * (1 - RATE))
    return float(2 * min(chi2.cdf(spread, UNITS), chi2.sf(spread, UNITS)))


CHECKS: dict[str, Callable[[Table], float]] = {
    "marginals": marginals_p,
    "sizes": sizes_p,
    "pairs": pairs_p,
    "gaps": gaps_p,
    "steps": steps_p,
    "dispersion": dispersion_p,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_the_samples_of_a_run_are_poisson(included: Table, check: Callable[[Table], float]) -> None:
    assert check(included) > LEVEL


def shuffled_epochs(table: Table) -> Table:
    """Batches of one size that go through all units before any comes again."""
    size, wrong = round(UNITS * RATE), np.zeros_like(table)
    order = np.concatenate(
        [np.random.default_rng(epoch).permutation(UNITS) for epoch in range(STEPS * size // UNITS + 1)]
    )
    for step in range(STEPS):
        wrong[step, order[step * size : (step + 1) * size]] = True
    return wrong


def batches_of_one_size(table: Table) -> Table:
    wrong, rng = np.zeros_like(table), np.random.default_rng(1)
    for step in range(STEPS):
        wrong[step, rng.choice(UNITS, round(UNITS * RATE), replace=False)] = True
    return wrong


FAULTS: dict[str, tuple[str, Callable[[Table], Table]]] = {
    "a rate a tenth too high": ("sizes", lambda t: t | table_of("luck", rate=RATE / 10)),
    "one unit twice as often": ("marginals", lambda t: with_column(t, 7, t[:, 7] | t[:, 8])),
    "epochs": ("dispersion", shuffled_epochs),
    "epochs, by their gaps": ("gaps", shuffled_epochs),
    "one size": ("sizes", batches_of_one_size),
    "two units tied": ("pairs", lambda t: with_column(t, 7, t[:, 8])),
    "each sample used twice": ("steps", lambda t: np.repeat(t[::2], 2, axis=0)),
    "a part kept from 13 steps before": (
        "steps",
        lambda t: t | (np.roll(t, 13, 0) & table_of("luck")),
    ),
}


def with_column(table: Table, unit: int, column: NDArray[np.bool_]) -> Table:
    wrong = table.copy()
    wrong[:, unit] = column
    return wrong


@pytest.mark.parametrize(("check", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_another_way_of_sampling_is_seen(
    included: Table, check: str, fault: Callable[[Table], Table]
) -> None:
    assert CHECKS[check](fault(included)) < LEVEL


def test_phases_and_incarnations_draw_independently() -> None:
    tables = [
        table_of(phase, incarnation, 1500)
        for phase in ("central", "private")
        for incarnation in ("", "one", "two")
    ]
    pairs = list(itertools.combinations(tables, 2))
    for one, other in pairs:
        assert binomial_p(int((one & other).sum()), one.size, RATE**2) * len(pairs) > LEVEL


@pytest.mark.parametrize("rate", [1e-4, 0.003, 0.5, 0.97])
def test_rare_and_frequent_rates_are_met_too(rate: float) -> None:
    run, units = run_of(0), 50_000
    found = sum(len(poisson_rows(run.rows_key("private", step), units, rate)) for step in range(40))
    assert binomial_p(found, 40 * units, rate) > LEVEL
