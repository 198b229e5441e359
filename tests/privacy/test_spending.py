"""Charges within the plan ask nobody; beyond it each is allowed by the accountant or ends the run."""

from collections.abc import Sequence

import pytest

from curriculumdp.privacy.chain import LedgerError
from curriculumdp.privacy.release import Release
from curriculumdp.privacy.spending import AHEAD, BudgetSpent, Spending

CENTRAL = Release("central", "subsampled_gaussian", 0.1, 5.0, 3)
PRIVATE = Release("private", "subsampled_gaussian", 0.02, 1.5, 10)


class Accountant:
    """Allows up to `most` releases in all, and counts how often it is asked."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, 0

    def __call__(self, releases: Sequence[Release]) -> bool:
        self.asked += 1
        return sum(release.count for release in releases) <= self.most


def charge_until_spent(spending: Spending, planned: Release) -> int:
    """How many were charged before BudgetSpent."""
    charged = 0
    while True:
        try:
            charge(spending, planned)
        except BudgetSpent:
            return charged
        charged += 1


def charge(spending: Spending, planned: Release) -> list[Release] | None:
    row = spending.row(planned.name, planned.sample_rate, planned.noise_multiplier)
    bound = spending.admit(row)
    spending.add(row)
    return bound


def test_the_plan_is_spent_without_asking():
    accountant = Accountant(0)
    spending = Spending([CENTRAL, PRIVATE], accountant)
    for planned in (CENTRAL, PRIVATE):
        for _ in range(planned.count):
            assert charge(spending, planned) is None
    assert accountant.asked == 0
    assert spending.releases() == [CENTRAL, PRIVATE]


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
    assert sum(release.count for release in spending.releases()) == 13


def test_a_widened_bound_is_told():
    spending = Spending([PRIVATE], Accountant(40))
    bounds = [charge(spending, PRIVATE) for _ in range(40)]
    assert [bound[0].count for bound in bounds if bound] == [18, 26, 34, 35, 36, 37, 38, 39, 40]


def test_what_was_not_planned_is_refused_by_the_fields_name():
    spending = Spending([CENTRAL, PRIVATE], Accountant(0))
    for name, rate, noise, reason in (
        ("private", 0.03, 1.5, "sample_rate is 0.03 and was planned as 0.02"),
        ("private", 0.02, 1.4, "noise_multiplier is 1.4 and was planned as 1.5"),
        ("warmup", 0.02, 1.5, "phase warmup: nothing"),
    ):
        with pytest.raises(LedgerError, match=reason):
            spending.row(name, rate, noise)
