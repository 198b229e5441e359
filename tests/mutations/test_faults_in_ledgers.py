"""Faults in names and ledgers: each is planted in the real code, and a test of the suite sees it."""

import pytest

from tests.mutations.faults_of_dataset import DATASET_FAULTS
from tests.mutations.faults_of_ledger import LEDGER_FAULTS
from tests.mutations.faults_of_names import NAMES_FAULTS
from tests.mutations.planting import Check, Fault, require_caught, require_clean, unique_checks

FAULTS = [*NAMES_FAULTS, *LEDGER_FAULTS, *DATASET_FAULTS]
CHECKS = unique_checks(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_the_planted_fault_is_caught(fault: Fault, prepared, place):
    require_caught(fault, place, prepared)


@pytest.mark.parametrize("check", CHECKS, ids=map(str, CHECKS))
def test_the_clean_code_passes_the_check(check: Check, prepared, place):
    require_clean(check, place, prepared)
