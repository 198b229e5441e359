"""A run folder on a named data set that was rolled back, copied or taken from its ledger is refused."""

import shutil

import pytest

from curriculumdp.ledger.mirror import RunMirror
from curriculumdp.ledger.run_ledger import Ledger, LedgerError
from tests.support.dataset import CENTRAL, DATA, FINGERPRINT, NONCE, PLAN, charge, secret


def test_a_run_folder_rolled_back_by_one_whole_line_is_refused(place):
    ledger = place.begin(1)
    for step in range(3):
        charge(ledger, step)
    ledger.close()
    path = place.root / "run1" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(LedgerError, match="rolled back, or a copy") as raised:
            place.resume(1)
        assert "\n" not in str(raised.value)
    path.write_bytes(b"".join(lines))
    charge(place.resume(1), 3)


def test_of_two_copies_that_are_resumed_in_turn_the_second_is_refused(place):
    ledger = place.begin(1)
    charge(ledger, 0)
    ledger.close()
    place.copy(1, "copy")
    ledger = place.resume(1)
    charge(ledger, 1)
    ledger.close()
    with pytest.raises(LedgerError, match="a copy of it was resumed"):
        place.resume(1, "copy")
    charge(place.resume(1), 2)


def test_of_two_copies_that_are_resumed_at_once_the_second_to_charge_is_refused(place):
    ledger = place.begin(1)
    charge(ledger, 0)
    ledger.close()
    place.copy(1, "copy")
    one, two = place.resume(1), place.resume(1, "copy")
    charge(one, 1)
    with pytest.raises(LedgerError, match="a copy of it was resumed"):
        charge(two, 5)
    for attempt in (lambda: charge(two, 5), lambda: two.new_incarnation(FINGERPRINT, "mismatch")):
        with pytest.raises(LedgerError, match="earlier write failed"):
            attempt()
    charge(one, 2)
    with pytest.raises(LedgerError, match="a copy of it was resumed"):
        place.resume(1, "copy")


def test_a_stale_process_cannot_change_what_the_copy_that_was_resumed_has_reserved(place):
    """A machine that was suspended wakes up: its charge is refused, and so must be what it would reserve for it."""
    stale = place.begin(1, allowance=lambda _: True)
    for step in range(3):
        charge(stale, step, CENTRAL)
    stale.new_incarnation(FINGERPRINT, "mismatch")
    place.copy(1, "copy")
    live = place.resume(1, "copy", allowance=lambda events: sum(event.count for event in events) < 50)
    for step in range(3):
        charge(live, step, CENTRAL)
    reserved = place.shared().reservations()
    with pytest.raises(LedgerError, match="a copy of it was resumed"):
        charge(stale, 0, CENTRAL)
    assert place.shared().reservations() == reserved
    live.close()
    place.resume(1, "copy")


def test_copies_made_before_the_first_entry_are_refused_too(place):
    place.begin(1).close()
    place.copy(1, "copy")
    charge(place.resume(1), 0)
    with pytest.raises(LedgerError, match="a copy of it was resumed"):
        place.resume(1, "copy")


def test_an_entry_whose_mirror_was_not_written_any_more_is_caught_up(place, monkeypatch):
    ledger = place.begin(1)
    with monkeypatch.context() as patched:
        patched.setattr(RunMirror, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            charge(ledger, 0)
    ledger.close()
    place.copy(1, "copy")
    ledger = place.resume(1)
    charge(ledger, 0)
    charge(ledger, 1)
    with pytest.raises(LedgerError, match="a copy of it was resumed"):
        place.resume(1, "copy")


def test_a_run_two_entries_ahead_of_its_mirror_is_refused(place):
    ledger = place.begin(1)
    ledger.mirror = None
    charge(ledger, 0)
    charge(ledger, 1)
    ledger.close()
    with pytest.raises(LedgerError, match="records 3 entries, the run has 5"):
        place.resume(1)


def test_another_ledger_of_equal_length_is_refused(place):
    ledger = place.begin(1)
    charge(ledger, 0)
    ledger.close()
    path = place.root / "run1" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    forked = Ledger.open(place.root / "run1", secret(1), {}, DATA)
    forked.begin(FINGERPRINT, NONCE)
    charge(forked, 7)
    forked.close()
    with pytest.raises(LedgerError, match="records 4 entries, the run has 4"):
        place.resume(1)


def test_a_run_that_has_spent_and_is_not_known_is_refused(place):
    ledger = place.begin(1)
    charge(ledger, 0)
    ledger.close()
    shutil.rmtree(place.folder)
    with pytest.raises(LedgerError, match="does not know run"):
        place.resume(1)


def test_a_run_killed_before_its_first_release_may_reserve_again(place):
    run = place.root / "run1"
    run.mkdir()
    Ledger.create(run, secret(1), PLAN, DATA).close()
    charge_me = place.resume(1)
    charge(charge_me, 0)
    assert len(place.shared().reservations()) == 1
