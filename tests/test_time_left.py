"""The time left is right for each phase at its own rate, from its second step on, and covers what is ahead."""

from collections.abc import Iterator

import pytest

from curriculumdp.durations import duration
from curriculumdp.metrics import Metrics
from curriculumdp.time_left import TimeLeft

STEPS = {"central": 3, "warmup": 100, "private": 50}
WORK = {"warmup": 64.0, "private": 640.0}
SECONDS = {"central": 0.01, "warmup": 0.1, "private": 1.0}
BUILDING = 30.0  # what the first step of each phase takes more


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def course(left: TimeLeft, clock: Clock, building: float = BUILDING) -> Iterator[tuple[str, int]]:
    """Do the run's steps; yields after each."""
    for phase, count in STEPS.items():
        for step in range(count):
            clock.now += SECONDS[phase] + (building if step == 0 else 0)
            left.step(phase)
            yield phase, step + 1


def test_a_phases_time_is_its_own_from_its_second_step_on():
    clock = Clock()
    left = TimeLeft(STEPS, WORK, clock)
    for phase, done in course(left, clock):
        if done >= 2:
            assert left.of_phase(done) == pytest.approx((STEPS[phase] - done) * SECONDS[phase], abs=1e-6)


def test_the_time_in_all_covers_the_phases_ahead_as_soon_as_a_network_was_timed():
    clock = Clock()
    left = TimeLeft(STEPS, WORK, clock)
    for phase, done in course(left, clock):
        if phase == "central":
            assert left.of_run(done) is None
            assert left.told(done).endswith("then warmup and private")
        elif phase == "warmup" and done >= 2:
            assert left.of_run(done) == pytest.approx((100 - done) * 0.1 + 50 * 1.0)
            assert "in all" in left.told(done)
        elif phase == "private":
            assert left.of_run(done) == pytest.approx(50 - done, abs=1e-6)
            assert "in all" not in left.told(done)


def test_a_phase_is_not_taken_for_as_fast_as_the_one_before():
    """What a rate over the whole run said: seconds for a phase that takes a minute."""
    clock = Clock()
    left = TimeLeft(STEPS, WORK, clock)
    told = {where: left.told(where[1]) for where in course(left, clock, building=0.0)}
    assert "49 s of private left" in told["private", 1]
    assert told["private", 50] == "1 s per step, 0 s of private left"


def test_a_load_that_changes_is_followed():
    clock = Clock()
    left = TimeLeft({"private": 1000}, {"private": 8.0}, clock)
    for step in range(400):
        clock.now += 1.0 if step < 200 else 3.0
        left.step("private")
    assert left.of_phase(400) == pytest.approx(600 * 3.0, rel=0.01)


def test_a_run_that_resumes_within_a_phase_counts_what_is_left_of_it():
    clock = Clock()
    left = TimeLeft(STEPS, WORK, clock)
    for _ in range(2):
        clock.now += 1.0
        left.step("private")
    assert left.of_phase(40) == left.of_run(40) == pytest.approx(10.0)


def test_the_bar_shows_it(tmp_path, capsys):
    with Metrics(tmp_path, {"warmup": 3, "private": 4}, 0, lambda *_: 0.5, work=WORK) as metrics:
        for step in range(3):
            metrics.step("warmup", step + 1, {})
            metrics._bar.refresh()
    shown = capsys.readouterr().err
    assert "of warmup left" in shown
    assert "in all" in shown
    assert "?" not in shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"),
        (0.0123, "0.012 s"),
        (59.4, "59 s"),
        (11.8, "12 s"),
        (74, "1.23 min"),
        (7200, "2 h"),
        (172800, "2 days"),
        (2.2e3 * 3600, "91.7 days"),
        (1e9, "11,574 days"),
    ],
)
def test_a_duration_has_a_unit_that_a_person_reads(seconds, said):
    assert duration(seconds) == said
    assert "e+" not in duration(seconds)
