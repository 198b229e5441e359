"""P4: units enter a step independently, at the promised rate, by a function of their number alone.

Keys are fixed, so that every figure below is exact from run to run; the bounds are 4 standard errors.
"""

import math

import numpy as np
import pytest

from curriculumdp.privacy.sampling import microbatches, poisson_rows
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.privacy.streams import keystream

SECRET = RunSecret.from_bytes(bytes(range(7, 39)))
UNITS, STEPS, RATE = 400, 5000, 0.1


def key(step: int, phase: str = "private", incarnation: int = 0) -> bytes:
    return SECRET.key("rows", incarnation=incarnation, phase=phase, step=step)


@pytest.fixture(scope="module")
def included() -> np.ndarray:
    """bool [STEPS, UNITS]: which unit was in which step."""
    table = np.zeros((STEPS, UNITS), bool)
    for step in range(STEPS):
        table[step, poisson_rows(key(step), UNITS, RATE)] = True
    return table


def test_every_unit_is_included_at_the_rate(included):
    error = math.sqrt(RATE * (1 - RATE) / STEPS)
    z = (included.mean(0) - RATE) / error
    assert abs(included.mean() - RATE) < 4 * error / math.sqrt(UNITS)
    assert np.abs(z).max() < 4
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / UNITS)


def test_the_sample_size_has_the_binomials_variance(included):
    sizes = included.sum(1)
    variance = UNITS * RATE * (1 - RATE)
    assert abs(sizes.mean() - UNITS * RATE) < 4 * math.sqrt(variance / STEPS)
    assert abs(sizes.var() / variance - 1) < 4 * math.sqrt(2 / STEPS)


def test_pairs_of_units_are_included_independently(included):
    centred = (included - RATE) / math.sqrt(RATE * (1 - RATE))
    correlation = centred.T @ centred / STEPS * math.sqrt(STEPS)
    pairs = correlation[np.triu_indices(UNITS, 1)]
    assert np.abs(pairs).max() < 5.5  # of 79,800 pairs
    assert abs(pairs.mean()) < 4 / math.sqrt(len(pairs))
    assert abs((pairs**2).mean() - 1) < 4 * math.sqrt(2 / len(pairs))


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 64, 1000])
def test_steps_are_independent(included, lag):
    centred = (included - RATE) / math.sqrt(RATE * (1 - RATE))
    products = centred[lag:] * centred[:-lag]
    assert abs(products.mean()) < 4 / math.sqrt(products.size)


def test_phases_and_incarnations_have_their_own_rows():
    samples = [
        tuple(poisson_rows(key(0, phase, incarnation), 10_000, RATE))
        for phase in ("central", "private")
        for incarnation in range(3)
    ]
    assert len(set(samples)) == len(samples)
    shared = len(set(samples[0]) & set(samples[1]))
    assert abs(shared - 10_000 * RATE**2) < 4 * math.sqrt(10_000 * RATE**2)


def test_rows_are_sorted_without_duplicates_and_a_function_of_the_key():
    rows = poisson_rows(key(3), 10_000, 0.3)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < 10_000
    assert np.array_equal(rows, poisson_rows(key(3), 10_000, 0.3))


def test_whether_a_unit_is_in_depends_on_no_other_unit():
    rows = poisson_rows(key(3), 10_000, 0.3)
    assert np.array_equal(poisson_rows(key(3), 4321, 0.3), rows[rows < 4321])


def test_a_lower_rate_takes_a_subset():
    assert set(poisson_rows(key(3), 10_000, 0.05)) < set(poisson_rows(key(3), 10_000, 0.3))


def test_the_ends_of_the_interval_are_exact():
    assert np.array_equal(poisson_rows(key(0), 1000, 1.0), np.arange(1000))
    assert len(poisson_rows(key(0), 1000, 0.0)) == 0
    assert len(poisson_rows(key(0), 1000, 1e-30)) == 0
    assert len(poisson_rows(key(0), 1000, math.nextafter(1.0, 0.0))) == 1000
    assert len(poisson_rows(key(0), 0, 0.5)) == 0


def test_the_threshold_is_strict_and_never_above_the_rate():
    word = int(keystream(key(0), 1)[0])
    rate = math.nextafter(word / 2**64, 0.0)
    assert int(rate * 2**64) <= word
    assert len(poisson_rows(key(0), 1, rate)) == 0
    assert len(poisson_rows(key(0), 1, (word + 2**12) / 2**64)) == 1


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match="sample rate"):
        poisson_rows(key(0), 10, rate)


@pytest.mark.parametrize("size", [1, 3, 16, 17, 100])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 48])
def test_microbatches_hold_every_row_once_and_padding(count, size):
    rows = np.arange(count, dtype=np.int64) * 3
    packed = microbatches(rows, size)
    assert packed.dtype == np.int64
    assert packed.shape == (-(-count // size), size)
    flat = packed.flatten()
    assert np.array_equal(flat[:count], rows)
    assert (flat[count:] == -1).all()


def test_ranks_share_a_sample_without_a_gap_or_a_duplicate():
    rows = poisson_rows(key(5), 1000, 0.3)
    for world in (1, 2, 3, 64):
        shares = [microbatches(rows, 8)[rank::world].flatten() for rank in range(world)]
        taken = np.concatenate(shares)
        assert np.array_equal(np.sort(taken[taken >= 0]), rows)


def test_a_microbatch_of_no_unit_is_refused():
    with pytest.raises(ValueError, match="microbatch"):
        microbatches(np.arange(3), 0)
