"""Each fault that a careful person could commit is planted in the real code, and a test of the suite sees it."""

import pytest

from tests.mutations.faults_of_accounting import ACCOUNTING_FAULTS
from tests.mutations.faults_of_dataset import DATASET_FAULTS
from tests.mutations.faults_of_frequency import FREQUENCY_FAULTS
from tests.mutations.faults_of_gpu import GPU_FAULTS
from tests.mutations.faults_of_ledger import LEDGER_FAULTS
from tests.mutations.faults_of_names import NAMES_FAULTS
from tests.mutations.faults_of_noise import NOISE_FAULTS
from tests.mutations.faults_of_release import RELEASE_FAULTS
from tests.mutations.faults_of_sample import SAMPLE_FAULTS
from tests.mutations.faults_of_sum import SUM_FAULTS
from tests.mutations.planting import Fault, outcome
from tests.support.tried import PLANTED

FAULTS = [
    *SUM_FAULTS,
    *GPU_FAULTS,
    *SAMPLE_FAULTS,
    *NOISE_FAULTS,
    *FREQUENCY_FAULTS,
    *ACCOUNTING_FAULTS,
    *RELEASE_FAULTS,
    *NAMES_FAULTS,
    *LEDGER_FAULTS,
    *DATASET_FAULTS,
]
CHECKS = list({str(fault.check): fault.check for fault in FAULTS}.values())


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_the_planted_fault_is_caught(fault: Fault, prepared, place):
    found = outcome(fault.check, fault, place, prepared)
    caught = found.kind in ("failed", "refused")
    PLANTED.append(
        (fault.name, str(fault.check) if caught else f"SURVIVED {fault.check}: {found.kind}", found.seconds)
    )
    assert caught, f"{found.kind}: {found.text}"


@pytest.mark.parametrize("check", CHECKS, ids=map(str, CHECKS))
def test_the_clean_code_passes_the_check(check, prepared, place):
    found = outcome(check, None, place, prepared)
    assert found.kind == "passed", found.text


def test_there_are_at_least_forty_faults_each_with_a_name_of_its_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


def test_a_fault_that_changes_nothing_would_be_reported_as_a_survivor(prepared, place):
    """The harness itself: code exchanged for its like is no failure, and a crash is not a catch."""
    fault = next(fault for fault in FAULTS if fault.name == "no noise")
    same = Fault("nothing", fault.function, fault.old, fault.old, fault.check)
    assert outcome(same.check, same, place, prepared).kind == "passed"
    crash = Fault("a crash", fault.function, fault.old, "return undefined_name", fault.check)
    assert outcome(crash.check, crash, place, prepared).kind == "broke"
