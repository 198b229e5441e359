"""`data.budget`: what goes beyond plans, or begins at the same time, keeps to it too."""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from curriculumdp.ledger.dataset_ledger import NoRoom
from curriculumdp.ledger.run_ledger import BudgetSpent, Ledger, LedgerError
from curriculumdp.privacy.event import PrivacyEvent
from tests.support.budget import CENTRAL, DATA, FINGERPRINT, PRIVATE, Place, charge, filling


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path).made()


def spend_to_the_end(ledger: Ledger, most: int = 10_000) -> int:
    """How many steps were charged, each in its own place, before BudgetSpent."""
    for step in range(most):
        try:
            charge(ledger, step)
        except BudgetSpent:
            return step
    raise AssertionError("nothing stopped the run")


def test_an_extension_stops_where_the_data_sets_budget_ends(place: Place) -> None:
    place.begin(1, [filling(0.9)])
    ledger = place.begin(2, [filling(0.05)])
    done = spend_to_the_end(ledger)
    limit = place.shared().limit
    assert limit is not None
    assert ledger.events() == [replace(PRIVATE, count=done)]
    assert 0.999 < 0.9 + limit.share(ledger.events()) <= 1.001
    assert 1 - limit.share([replace(PRIVATE, count=1)]) < place.share() <= 1
    ledger.seal("budget")
    assert place.share() <= 1


def test_an_extension_is_in_force_before_its_entry_is_written(place: Place) -> None:
    ledger = place.begin(1, [replace(PRIVATE, count=3)])
    for step in range(10):
        charge(ledger, step)
        (reservation,) = place.shared().reservations()
        assert reservation.events[0].count >= step + 1


def test_an_extension_keeps_the_plan_that_is_still_to_come(place: Place) -> None:
    steps = filling(0.6)
    ledger = place.begin(1, [replace(CENTRAL, count=1), steps])
    charge(ledger, 0, CENTRAL)
    ledger.new_incarnation(FINGERPRINT, "mismatch")
    charge(ledger, 0, CENTRAL)
    assert place.share() >= 0.6
    with pytest.raises(NoRoom):
        place.begin(2, [filling(0.5)])
    for step in range(steps.count):
        charge(ledger, step)


def test_where_plan_and_extension_do_not_fit_the_fewest_steps_are_given_up(place: Place) -> None:
    """Within ε, here as much as the plan costs: the reservation covers what the run may do, to its end."""
    steps = filling(0.6)
    plan = [replace(CENTRAL, count=1), steps]
    shared = place.shared()
    assert shared.limit is not None
    limit, most = shared.limit, shared.limit.share(plan)
    ledger = place.begin(1, plan, lambda events: limit.share(events) <= most)
    charge(ledger, 0, CENTRAL)
    for incarnation in range(3):
        ledger.new_incarnation(FINGERPRINT, f"mismatch {incarnation}")
        charge(ledger, 0, CENTRAL)
        assert most - limit.share([replace(PRIVATE, count=1)]) < place.share() <= most
        (mine,) = place.shared().reservations()
        assert ledger.granted() == list(mine.events)
    other = place.begin(2, [filling(1 - place.share() - 0.002)])
    done = spend_to_the_end(ledger)
    once = limit.share([replace(CENTRAL, count=1)]) / limit.share([replace(PRIVATE, count=1)])
    assert steps.count - 3 * once - 1 <= done < steps.count
    other.close()


def test_a_run_killed_between_an_extension_and_its_entry_resumes_within_what_is_reserved(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes the room of the steps that the extension gave up: the plan is not whole any more."""
    plan = [replace(CENTRAL, count=1), filling(0.6)]
    shared = place.shared()
    assert shared.limit is not None
    limit, most = shared.limit, shared.limit.share(plan)

    def allowance(events: Sequence[PrivacyEvent]) -> bool:
        return limit.share(events) <= most

    ledger = place.begin(1, plan, allowance)
    charge(ledger, 0, CENTRAL)
    ledger.new_incarnation(FINGERPRINT, "mismatch")
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "_append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            charge(ledger, 0, CENTRAL)
    ledger.close()
    left = 1 - place.share()
    place.begin(2, [replace(filling(1.0), count=int(left / limit.share([replace(PRIVATE, count=1)])))])
    for data in (DATA, None):
        resumed = place.resume(1, data, allowance)
        (mine, _) = place.shared().reservations()
        assert resumed.granted() == list(mine.events)
        resumed.close()
    resumed = place.resume(1, DATA, allowance)
    spend_to_the_end(resumed)
    assert resumed.events()[1].count >= plan[1].count - 100
    assert place.share() <= 1


def forked(works: Sequence[Callable[[], object]]) -> list[int]:
    """The exit statuses of processes that each wait for the last one's start and then do their work."""
    start_r, start_w = os.pipe()
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(start_w)
                os.read(start_r, 1)  # ends when the parent closes its end
                work()
                status = 0
            except (LedgerError, BudgetSpent):
                status = 3
            finally:
                os._exit(status)
        children.append(child)
    os.close(start_w)
    os.close(start_r)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_of_runs_that_begin_at_once_only_those_that_fit_get_in(place: Place) -> None:
    place.shared()
    plan = [filling(0.3)]
    statuses = forked([lambda n=number: place.begin(n, plan) for number in range(1, 9)])
    assert sorted(statuses) == [0, 0, 0, 3, 3, 3, 3, 3]
    assert len(place.shared().reservations()) == 3
    assert 0.8 < place.share() <= 1


def test_two_runs_that_extend_at_once_do_not_pass_the_budget_together(place: Place) -> None:
    numbers = 1, 2
    for number in numbers:
        place.begin(number, [filling(0.45)]).close()

    def extend(number: int) -> None:
        ledger = place.resume(number)
        rows = ledger.planned[0].count
        for step in itertools.count():
            if step >= rows:
                charge(ledger, step)
            else:
                ledger._spending.add(
                    replace(PRIVATE, count=0)
                )  # the plan itself, unwritten: it is not at stake

    assert forked([lambda n=number: extend(n) for number in numbers]) == [3, 3]
    assert 0.99 < place.share() <= 1
