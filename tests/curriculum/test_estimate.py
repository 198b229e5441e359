"""The estimate runs the real step on made images, and multiplies what it timed."""

from pathlib import Path

import pytest

from curriculumdp.curriculum import estimate as module
from curriculumdp.curriculum.estimate import Estimate, estimate
from tests.support.runs import plan_of, tiny


@pytest.mark.parametrize(("microbatch", "times"), [(8, 4), (16, 2), (64, 1)])
def test_a_step_takes_as_many_microbatches_as_its_expected_units_fill(monkeypatch, microbatch, times):
    """0.02 of 1437 units are 28.7; a clock that advances a second a look makes every timed part one second."""
    looks = iter(range(10))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(looks)))
    config = tiny(Path("nowhere"), compute__microbatch=microbatch)
    found = estimate(config, plan_of(config))
    assert found.step_seconds == times + 1  # and the update
    assert found.steps == config.private.steps
    assert found.memory > 50 * 2**20


def test_hours_are_those_of_all_steps():
    assert Estimate("cpu", 36.0, 200, 2**30).hours == 2.0
    assert "2 GPU-hours for 200 steps" in str(Estimate("cuda", 36.0, 200, 2**30))
