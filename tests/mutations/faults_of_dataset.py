"""Faults of a data set's books: budgets that runs share, and run folders that were copied or rolled back."""

from curriculumdp.ledger.chain import LedgerError
from tests.mutations.planting import Check, Fault

DATA_SET = "tests.curriculum.test_dataset:"
BUDGET = "tests.ledger.test_budget:"
COPIES = "tests.ledger.test_copies_of_runs:"
EXTENSIONS = "tests.ledger.test_budget_extensions:"

DATASET_FAULTS = [
    Fault(
        "an extension that reserves less than the run may do",
        "curriculumdp.ledger.spending:Spending.admit",
        "if self._allowance(_listed(wider)) and reserve(_listed(wider)):",
        "if self._allowance(_listed(wider)) and reserve(_listed(self._counts | {row: limit})):",
        Check(EXTENSIONS + "test_an_extension_keeps_the_plan_that_is_still_to_come"),
    ),
    Fault(
        "steps given up that the run may do all the same",
        "curriculumdp.ledger.spending:Spending._trade",
        "self._bound = _cut(counts, kept, unused - cut)",
        "self._bound = _cut(counts, kept, unused)",
        Check(EXTENSIONS + "test_where_plan_and_extension_do_not_fit_the_fewest_steps_are_given_up"),
    ),
    Fault(
        "a plan taken for reserved after an extension gave up a part of it",
        "curriculumdp.ledger.dataset_ledger:DatasetLedger._settle",
        "settled = ledger.keep_within(before.events)",
        "settled = True",
        Check(
            EXTENSIONS
            + "test_a_run_killed_between_an_extension_and_its_entry_resumes_within_what_is_reserved"
        ),
    ),
    Fault(
        "a ledger that lies where the run is started",
        "curriculumdp.config.checks:_data_problems",
        "if data.ledger is not None and not os.path.isabs(data.ledger):",
        "if data.ledger is not None and not data.ledger:",
        Check(
            DATA_SET + "test_a_ledger_whose_place_depends_on_where_a_run_is_started_is_refused",
            {"place": "./state"},
        ),
    ),
    Fault(
        "a budget given anew by every ledger that is not found",
        "curriculumdp.ledger.dataset_ledger:DatasetLedger.open",
        'if definition.get("budget") is None:',
        "if definition:",
        Check(DATA_SET + "test_a_run_with_a_budget_makes_no_ledger_wherever_it_looks", {"home": "one"}),
    ),
    Fault(
        "a budget that a run replaces by its own",
        "curriculumdp.ledger.dataset_ledger:DatasetLedger.open",
        'lambda before: before.get("budget") is None)',
        "lambda before: before is not None)",
        Check(DATA_SET + "test_a_ledger_that_no_run_has_used_is_defined_anew_and_one_in_use_is_not"),
    ),
    Fault(
        "a budget that is raised after runs have used it",
        "curriculumdp.ledger.dataset_ledger:DatasetLedger._define_anew",
        "if self._reservations():",
        "if len(self._reservations()) > 9:",
        Check(BUDGET + "test_the_budget_is_the_first_runs_for_ever", {"budget": 2.1}),
        raises=(LedgerError,),
    ),
    Fault(
        "ledger and checkpoint rolled back together",
        "curriculumdp.ledger.dataset_ledger:DatasetLedger.attach",
        "mirror.check(ledger.macs)",
        "pass",
        Check(COPIES + "test_a_run_folder_rolled_back_by_one_whole_line_is_refused"),
    ),
    Fault(
        "a run folder copied and both resumed",
        "curriculumdp.ledger.mirror:RunMirror.advance",
        "if mirrored[0] != count - 1 or not hmac.compare_digest(mirrored[1], previous):",
        "if mirrored[0] > count:",
        Check(COPIES + "test_of_two_copies_that_are_resumed_at_once_the_second_to_charge_is_refused"),
    ),
    Fault(
        "a stale process that reserves for the copy that was resumed",
        "curriculumdp.ledger.mirror:RunMirror._require_head",
        "if mirrored[0] != count or not hmac.compare_digest(mirrored[1], mac):",
        "if mirrored[0] < 0:",
        Check(COPIES + "test_a_stale_process_cannot_change_what_the_copy_that_was_resumed_has_reserved"),
    ),
    Fault(
        "copies resumed in turn",
        "curriculumdp.ledger.mirror:RunMirror.check",
        "if not 0 <= len(macs) - count <= 1 or not hmac.compare_digest(macs[count - 1], mac):",
        "if len(macs) > count + 1:",
        Check(COPIES + "test_of_two_copies_that_are_resumed_in_turn_the_second_is_refused"),
    ),
    Fault(
        "a copy that seals itself and is released",
        "curriculumdp.curriculum.folder:RunFolder.claim",
        "self._settle()",
        "pass",
        Check(DATA_SET + "test_a_copy_that_sealed_itself_after_the_other_was_resumed_gets_no_release"),
    ),
    Fault(
        "a run resumed without the ledger that knows it",
        "curriculumdp.curriculum.dataset:attach",
        "if shared is None and ledger.sealed is None and (data is not None or ledger.events()):",
        "if shared is None and ledger.sealed is None and not ledger.macs:",
        Check(
            DATA_SET + "test_an_unsealed_run_that_has_spent_is_refused_without_its_ledger_and_makes_none",
            {"command": "train"},
        ),
    ),
]
