"""The estimate runs the real step on made images, and multiplies what it timed."""

from pathlib import Path

import pytest

from curriculumdp.curriculum import estimate as module
from curriculumdp.curriculum.estimate import Estimate, estimate
from tests.support.runs import plan_of, tiny


@pytest.mark.parametrize(("microbatch", "times"), [(8, 4), (16, 2), (64, 1)])
def test_a_step_takes_as_many_microbatches_as_its_expected_units_fill(monkeypatch, microbatch, times):
    """0.02 of 1437 units are 28.7; a clock that advances a second a look makes every timed part one second."""
    looks = iter(range(100))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(looks)))
    config = tiny(Path("nowhere"), compute__microbatch=microbatch)
    found = estimate(config, plan_of(config))
    assert found.step_seconds == (times + 1,) * 3  # and the update
    assert found.timed == module.MOST
    assert found.steps == config.private.steps
    assert found.memory > 50 * 2**20


def test_one_slow_microbatch_is_in_the_spread_and_not_in_the_estimate(monkeypatch):
    took = [0.5, 100.0, *[0.5] * 7, 0.25]  # the last is the update
    looks = iter(
        edge for place, length in enumerate(took) for edge in (1000.0 * place, 1000.0 * place + length)
    )
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(looks))
    monkeypatch.setattr(module, "SECONDS", 1e9)
    config, said = tiny(Path("nowhere"), compute__microbatch=16), []
    found = estimate(config, plan_of(config), said.append)
    assert found.step_seconds == (1.25, 1.25, 200.25)
    assert len(said) == 1 + found.timed == 10
    assert "took 1.67 min" in said[2]


def test_slow_microbatches_are_not_timed_for_ever(monkeypatch):
    looks = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(looks)))
    config = tiny(Path("nowhere"), compute__microbatch=64)
    assert estimate(config, plan_of(config)).timed == module.LEAST


def test_the_time_of_all_steps_has_a_unit_that_a_person_reads():
    assert "2 h for 200 steps" in str(Estimate("cuda", (30.0, 36.0, 40.0), 9, 200, 2**30))
    assert "36 s per step (30 s to 1.67 min)" in str(Estimate("cuda", (30.0, 36.0, 100.0), 9, 200, 2**30))
    assert "91.7 days for 220000 steps" in str(Estimate("cpu", (1.0, 36.0, 99.0), 9, 220_000, 2**30))
    assert "e+" not in str(Estimate("cpu", (1.0, 36.0, 99.0), 9, 220_000, 2**30))
