"""Charges within the plan ask nobody; beyond it each is allowed by the accountant or ends the run."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from curriculumdp.ledger.chain import LedgerError
from curriculumdp.ledger.spending import AHEAD, BudgetSpent, Spending
from curriculumdp.privacy.event import PrivacyEvent

CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 3)
PRIVATE = PrivacyEvent("private", "subsampled_gaussian", 0.02, 1.5, 10)


class Accountant:
    """Allows up to `most` events in all, and counts how often it is asked."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, 0

    def __call__(self, events: Sequence[PrivacyEvent]) -> bool:
        self.asked += 1
        return sum(event.count for event in events) <= self.most


def charge_until_spent(spending: Spending, planned: PrivacyEvent, reserve: "Reserve | None" = None) -> int:
    """How many were charged before BudgetSpent."""
    charged = 0
    while True:
        try:
            charge(spending, planned, reserve)
        except BudgetSpent:
            return charged
        charged += 1


class Reserve:
    """Grants up to `most` events in all, and keeps what it granted."""

    def __init__(self, most: float = math.inf) -> None:
        self.most = most
        self.granted: list[list[PrivacyEvent]] = []

    def __call__(self, events: Sequence[PrivacyEvent]) -> bool:
        if sum(event.count for event in events) > self.most:
            return False
        self.granted.append(list(events))
        return True


def charge(spending: Spending, planned: PrivacyEvent, reserve: Reserve | None = None) -> None:
    row = spending.row(planned.name, planned.sample_rate, planned.noise_multiplier)
    spending.admit(row, reserve or Reserve())
    spending.add(row)


def test_the_plan_is_spent_without_asking():
    accountant = Accountant(0)
    spending = Spending([CENTRAL, PRIVATE], accountant)
    for planned in (CENTRAL, PRIVATE):
        for _ in range(planned.count):
            assert spending.granted() == [CENTRAL, PRIVATE]
            charge(spending, planned)
    assert accountant.asked == 0
    assert spending.events() == [CENTRAL, PRIVATE]


@pytest.mark.parametrize("beyond", [0, 1, 7, 8, 9, 63, 64, 65, 200])
def test_beyond_the_plan_exactly_what_is_allowed_is_charged(beyond):
    accountant = Accountant(13 + beyond)
    spending = Spending([CENTRAL, PRIVATE], accountant)
    for _ in range(3):
        charge(spending, CENTRAL)
    assert charge_until_spent(spending, PRIVATE) == 10 + beyond
    assert accountant.asked <= beyond // AHEAD[0] + 3 * len(AHEAD) * AHEAD[1]


def test_after_one_row_passed_its_plan_the_others_are_asked_for_too():
    accountant = Accountant(13)
    spending = Spending([CENTRAL, PRIVATE], accountant)
    for _ in range(5):
        charge(spending, CENTRAL)
    assert charge_until_spent(spending, PRIVATE) == 8
    assert sum(event.count for event in spending.events()) == 13


def test_a_widened_bound_is_reserved_once_and_before_it_is_used():
    spending, reserve = Spending([PRIVATE], Accountant(40)), Reserve()
    for number in range(40):
        charge(spending, PRIVATE, reserve)
        assert number < max([10, *(bound[0].count for bound in reserve.granted)])
    assert [bound[0].count for bound in reserve.granted] == [18, 26, 34, 35, 36, 37, 38, 39, 40]


@pytest.mark.parametrize("room", [10, 11, 17, 18, 19, 30])
def test_what_cannot_be_reserved_is_not_charged_though_it_is_within_epsilon(room):
    spending, reserve = Spending([PRIVATE], Accountant(1000)), Reserve(room)
    for _ in range(room):
        charge(spending, PRIVATE, reserve)
    with pytest.raises(BudgetSpent):
        charge(spending, PRIVATE, reserve)
    assert spending.events() == [replace(PRIVATE, count=room)]


def test_what_is_granted_is_the_plan_until_a_row_passes_it_and_then_what_was_reserved():
    spending = Spending([CENTRAL, PRIVATE], Accountant(13))
    for _ in range(4):
        charge(spending, CENTRAL)
    assert {r.name: r.count for r in spending.granted()} == {"central": 4, "private": 9}
    resumed = Spending([CENTRAL, PRIVATE], Accountant(13))
    for _ in range(4):
        resumed.add(replace(CENTRAL, count=0))
    assert resumed.granted() == [replace(CENTRAL, count=4)]


@pytest.mark.parametrize("room", [14, 21, 77, 200])
def test_an_extension_that_fits_beside_the_plan_keeps_all_of_it(room):
    spending, reserve = Spending([CENTRAL, PRIVATE], Accountant(room)), Reserve()
    for _ in range(4):
        charge(spending, CENTRAL, reserve)
    assert {r.name: r.count for r in spending.granted()}["private"] == 10
    for _ in range(10):
        charge(spending, PRIVATE, reserve)
    assert len(reserve.granted) == 1


@pytest.mark.parametrize("within", ["accountant", "reserve"])
@pytest.mark.parametrize("redone", [1, 2, 3, 7, 10])
def test_where_the_plan_and_one_more_do_not_fit_the_fewest_later_ones_are_given_up(redone, within):
    most = {"accountant": math.inf, "reserve": math.inf, within: 13}
    spending, reserve = Spending([CENTRAL, PRIVATE], Accountant(most["accountant"])), Reserve(most["reserve"])
    for number in range(3 + redone):
        charge(spending, CENTRAL, reserve)
        left = 10 - max(0, number - 2)
        assert {r.name: r.count for r in spending.granted()} == {
            "central": max(3, number + 1),
            "private": left,
        }
        if number > 2:
            assert reserve.granted[-1] == spending.granted()
    assert charge_until_spent(spending, PRIVATE, reserve) == 10 - redone


def test_nothing_is_given_up_for_a_release_that_cannot_be_had_all_the_same():
    spending, reserve = Spending([CENTRAL, PRIVATE], Accountant(3)), Reserve()
    for _ in range(3):
        charge(spending, CENTRAL, reserve)
    with pytest.raises(BudgetSpent):
        charge(spending, CENTRAL, reserve)
    assert reserve.granted == []
    assert spending.granted() == [CENTRAL, PRIVATE]


@pytest.mark.parametrize("given_up", [1, 7, 200, 2250])
def test_an_extension_asks_the_accountant_some_twenty_times_at_most(given_up):
    accountant = Accountant(3 + 2251 - given_up)
    spending = Spending([CENTRAL, replace(PRIVATE, count=2250)], accountant)
    for _ in range(4):
        charge(spending, CENTRAL)
    assert spending.granted()[1].count == 2250 - given_up
    assert accountant.asked <= len(AHEAD) + 2 + 2 * math.log2(2 * given_up)


def test_a_run_resumed_unmirrored_after_an_extension_keeps_what_fits_too():
    spending = Spending([CENTRAL, PRIVATE], Accountant(13))
    for _ in range(5):
        spending.add(replace(CENTRAL, count=0))
    assert charge_until_spent(spending, PRIVATE) == 8


def test_a_reservation_is_a_runs_bound_unless_more_was_counted():
    spending = Spending([CENTRAL, PRIVATE], Accountant(0))
    charge(spending, CENTRAL)
    reserved = [replace(CENTRAL, count=1), replace(PRIVATE, count=6)]
    assert spending.bind(reserved)
    assert spending.granted() == reserved
    assert charge_until_spent(spending, PRIVATE) == 6
    assert not spending.bind([replace(PRIVATE, count=9)])
    assert spending.granted() == reserved


def test_more_releases_than_can_be_counted_end_the_run_like_a_spent_budget():
    planned = replace(PRIVATE, count=10**6)
    spending = Spending([planned], lambda _: True)
    spending._counts = {replace(planned, count=0): 10**6 - 1}
    charge(spending, planned)
    with pytest.raises(BudgetSpent):
        charge(spending, planned)


def test_what_was_not_planned_is_refused_by_the_fields_name():
    spending = Spending([CENTRAL, PRIVATE], Accountant(0))
    for name, rate, noise, reason in (
        ("private", 0.03, 1.5, "sample_rate is 0.03 but was planned as 0.02"),
        ("private", 0.02, 1.4, "noise_multiplier is 1.4 but was planned as 1.5"),
        ("warmup", 0.02, 1.5, "phase warmup: no phase of that name"),
    ):
        with pytest.raises(LedgerError, match=reason):
            spending.row(name, rate, noise)


def test_all_events_of_a_phase_have_one_clip_norm():
    spending = Spending([CENTRAL, PRIVATE], Accountant(0))
    spending.take_clip_norm("central", 2.0)
    spending.take_clip_norm("private", 1.0)
    with pytest.raises(LedgerError, match=r"phase private: clip_norm is 1.5, but 1.0 was charged before"):
        spending.take_clip_norm("private", 1.5)
    assert spending.clip_norms == {"central": 2.0, "private": 1.0}
