"""The table of faults and the harness that plants them."""

from tests.mutations.planting import Fault, outcome
from tests.mutations.test_faults_in_accounts import FAULTS as IN_ACCOUNTS
from tests.mutations.test_faults_in_ledgers import FAULTS as IN_LEDGERS
from tests.mutations.test_faults_in_sums import FAULTS as IN_SUMS

FAULTS = [*IN_SUMS, *IN_ACCOUNTS, *IN_LEDGERS]


def test_there_are_at_least_two_hundred_faults_each_with_a_name_of_its_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 200


def test_every_fault_still_fits_the_code():
    for fault in FAULTS:
        fault.mutated()


def test_a_fault_that_changes_nothing_would_be_reported_as_a_survivor(prepared, place):
    """The harness itself: code exchanged for its like is no failure, and a crash is not a catch."""
    fault = next(fault for fault in FAULTS if fault.name == "no noise")
    same = Fault("nothing", fault.function, fault.old, fault.old, fault.check)
    assert outcome(same.check, same, place, prepared).kind == "passed"
    crash = Fault("a crash", fault.function, fault.old, "return undefined_name", fault.check)
    assert outcome(crash.check, crash, place, prepared).kind == "broke"
