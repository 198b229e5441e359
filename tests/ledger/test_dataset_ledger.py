"""All runs on a named data set are composed, and a run folder that was rolled back or copied is noticed."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.ledger.dataset_ledger import DatasetLedger, state_folder
from curriculumdp.ledger.lock import waiting_lock
from curriculumdp.ledger.mirror import SLOT, RunMirror
from curriculumdp.ledger.run_files import subkey
from curriculumdp.ledger.run_ledger import Ledger, LedgerError
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.secret import RunSecret

CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 3)
PRIVATE = PrivacyEvent("private", "subsampled_gaussian", 0.02, 1.5, 20)
PLAN = {"events": [asdict(CENTRAL), asdict(PRIVATE)]}
DATA = [np.arange(12, dtype=np.uint8), np.array([0, 1])]
FINGERPRINT = {"threads": 1}
NONCE = "5e" * 32
DEFINITION = {"unit": "patient", "delta": 1e-5, "units": 1437}


def secret(number: int) -> RunSecret:
    return RunSecret.from_bytes(bytes([number]) * 32)


class Place:
    """A data set's folder and run folders on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "state"

    def shared(self, **changes: Any) -> DatasetLedger:
        return DatasetLedger.open(self.folder, DEFINITION | changes)

    def begin(self, number: int, allowance: Callable[..., bool] = lambda _: False) -> Ledger:
        """A new run, attached."""
        run = self.root / f"run{number}"
        run.mkdir()
        ledger = Ledger.create(run, secret(number), PLAN, DATA, allowance)
        assert self.shared().attach(ledger, 8.0, DATA) == []
        ledger.begin(FINGERPRINT, NONCE)
        return ledger

    def resume(
        self, number: int, name: str | None = None, allowance: Callable[..., bool] = lambda _: False
    ) -> Ledger:
        """A run that goes on, in its own folder or in the one named."""
        ledger = Ledger.open(self.root / (name or f"run{number}"), secret(number), {}, DATA, allowance)
        self.shared().attach(ledger, 8.0, DATA)
        ledger.begin(FINGERPRINT, NONCE)
        return ledger

    def copy(self, number: int, name: str) -> None:
        shutil.copytree(self.root / f"run{number}", self.root / name)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def charge(ledger: Ledger, step: int, event: PrivacyEvent = PRIVATE) -> bytes:
    return ledger.charge(
        event.name,
        step,
        sample_rate=event.sample_rate,
        noise_multiplier=event.noise_multiplier,
        clip_norm=1.0,
        total=np.arange(5, dtype=np.int64) + step,
    )


def test_a_run_reserves_its_plan_before_its_first_query(place):
    place.begin(1)
    (reservation,) = place.shared().reservations()
    assert reservation.events == (CENTRAL, PRIVATE)
    assert reservation.epsilon == 8.0
    assert reservation.run == secret(1).identity()


def test_all_runs_are_composed(place):
    place.begin(1)
    place.begin(2)
    total = place.shared().total_events()
    assert {(r.name, r.sample_rate, r.noise_multiplier): r.count for r in total} == {
        ("central", 0.1, 5.0): 6,
        ("private", 0.02, 1.5): 40,
    }
    assert [r.run for r in place.shared().reservations()] == [secret(1).identity(), secret(2).identity()]


def test_a_run_killed_at_any_entry_goes_on(place):
    ledger = place.begin(1)
    for step in range(4):
        charge(ledger, step)
        ledger.close()
        ledger = place.resume(1)
        assert ledger.begin(FINGERPRINT, NONCE) == 0
        charge(ledger, step)
    assert len(place.shared().reservations()) == 1


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


@pytest.mark.parametrize("damage", ["remove", "empty", "zeros", "cut"])
def test_a_missing_or_damaged_mirror_is_refused(place, damage):
    ledger = place.begin(1)
    charge(ledger, 0)
    mirror = place.folder / "mirrors" / ledger.run
    if damage == "remove":
        mirror.unlink()
    else:
        mirror.write_bytes({"empty": b"", "zeros": bytes(2 * SLOT), "cut": mirror.read_bytes()[:100]}[damage])
    with pytest.raises(LedgerError, match="mirror"):
        charge(ledger, 1)
    ledger.close()
    with pytest.raises(LedgerError, match="mirror"):
        place.resume(1)


def test_a_mirror_advances_by_one_from_the_head_it_knows_and_from_no_other(tmp_path):
    mirror = RunMirror(tmp_path / "run", b"k", lambda *_: None)
    macs = [f"{number:064x}" for number in range(8)]
    mirror.create(1, macs[1])
    mirror.advance(2, macs[2], macs[1])
    mirror.advance(3, macs[3], macs[2])
    wrong = ((4, macs[4], macs[2]), (5, macs[5], macs[3]), (5, macs[5], macs[4]), (3, macs[3], macs[2]))
    for count, mac, previous in (*wrong, (2, macs[2], macs[1]), (1, macs[1], macs[0])):
        with pytest.raises(LedgerError, match="a copy of it was resumed"):
            mirror.advance(count, mac, previous)
    mirror.advance(4, macs[4], macs[3])
    mirror.check(macs[1:5])
    mirror.check(macs[1:6])
    mirror.advance(6, macs[6], macs[5])


def test_another_runs_mirror_is_not_taken(place):
    one, two = place.begin(1), place.begin(2)
    mirrors = place.folder / "mirrors"
    shutil.copy(mirrors / one.run, mirrors / two.run)
    with pytest.raises(LedgerError, match="changed or damaged"):
        charge(two, 0)


def test_a_torn_mirror_falls_back_to_the_head_before(place):
    ledger = place.begin(1)
    charge(ledger, 0)
    charge(ledger, 1)
    ledger.close()
    mirror = place.folder / "mirrors" / ledger.run
    whole = mirror.read_bytes()
    newest = len(ledger.macs) % 2 * SLOT
    for kept in range(0, 147, 7):
        mirror.write_bytes(whole[: newest + kept] + bytes(SLOT - kept) + whole[newest + SLOT :])
        resumed = place.resume(1)
        resumed.close()
        assert mirror.read_bytes() == whole
    path = place.root / "run1" / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    mirror.write_bytes(whole[:newest] + bytes(SLOT) + whole[newest + SLOT :])
    with pytest.raises(LedgerError, match="rolled back"):
        place.resume(1)


def test_every_byte_of_a_mirror_counts(place):
    ledger = place.begin(1)
    charge(ledger, 0)
    ledger.close()
    mirror = place.folder / "mirrors" / ledger.run
    whole = mirror.read_bytes()
    newest = len(ledger.macs) % 2 * SLOT
    key = subkey((place.folder / "dataset.key").read_bytes(), "mirror")
    guarded = RunMirror(mirror, key, lambda *_: None)
    for offset in [*range(150), *range(150, SLOT, 40)]:
        spot = newest + offset
        mirror.write_bytes(whole[:spot] + bytes([whole[spot] ^ 1]) + whole[spot + 1 :])
        with guarded._held() as descriptor:
            assert guarded._head(descriptor)[0] == len(ledger.macs) - 1


@pytest.mark.parametrize(
    ("field", "value"), [("unit", "image"), ("delta", 1e-6), ("units", 1438), ("window", [0, 1])]
)
def test_runs_that_disagree_on_the_definition_are_refused_by_its_field(place, field, value):
    place.begin(1)
    place.shared()
    with pytest.raises(LedgerError, match=f"{field} is .* can no longer change") as raised:
        place.shared(**{field: value})
    assert repr(value) in str(raised.value)
    assert repr(DEFINITION.get(field)) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_data_under_the_same_name_only_warn(place):
    place.begin(1)
    run = place.root / "run2"
    run.mkdir()
    changed = [DATA[0] + 1, DATA[1]]
    ledger = Ledger.create(run, secret(2), PLAN, changed)
    (warning,) = place.shared().attach(ledger, 8.0, changed)
    assert secret(1).identity() in warning
    assert "\n" not in warning
    assert len(place.shared().reservations()) == 2


def test_what_a_sealed_run_really_spent_is_composed(place):
    ledger = place.begin(1)
    charge(ledger, 0, CENTRAL)
    charge(ledger, 0)
    ledger.seal("operator")
    assert {r.name: r.count for r in place.shared().total_events()} == {"central": 1, "private": 1}


def test_what_goes_beyond_a_plan_is_reserved_before_it_is_spent(place):
    ledger = place.begin(1, allowance=lambda _: True)
    for incarnation in range(5):
        if incarnation:
            ledger.new_incarnation(FINGERPRINT, "mismatch")
        charge(ledger, 0, CENTRAL)
        reserved = {r.name: r.count for r in place.shared().total_events()}
        assert reserved["central"] >= incarnation + 1
    assert ledger.events()[0].count == 5


def test_a_missing_ledger_or_key_of_a_data_set_in_use_is_refused(place):
    place.begin(1)
    kept = {name: (place.folder / name).read_bytes() for name in ("ledger.jsonl", "dataset.key")}
    (place.folder / "ledger.jsonl").unlink()
    with pytest.raises(LedgerError, match="mirrors of runs lie next to it"):
        place.shared()
    (place.folder / "ledger.jsonl").write_bytes(kept["ledger.jsonl"])
    (place.folder / "dataset.key").unlink()
    with pytest.raises(LedgerError, match=r"dataset\.key"):
        place.shared()


def test_every_changed_byte_of_the_data_sets_ledger_is_refused(place):
    place.begin(1)
    path = place.folder / "ledger.jsonl"
    content = path.read_bytes()
    shared = place.shared()
    with path.open("r+b", buffering=0) as file:
        for spot, byte in enumerate(content):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << spot % 8]), spot)
            with pytest.raises(LedgerError):
                shared.reservations()
            os.pwrite(file.fileno(), bytes([byte]), spot)
    assert len(shared.reservations()) == 1


def test_runs_of_many_processes_can_reserve_and_charge_at_once(place):
    place.shared()
    children = []
    for number in range(1, 5):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                ledger = place.begin(number)
                for step in range(10):
                    charge(ledger, step)
                ledger.seal("operator")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert {r.name: r.count for r in place.shared().total_events()} == {"private": 40}


def test_a_reservation_waits_for_the_one_before(place):
    shared = place.shared()
    done = []
    with waiting_lock(place.folder / "lock"):
        thread = threading.Thread(target=lambda: done.append(shared.reservations()))
        thread.start()
        thread.join(timeout=0.1)
        assert not done
    thread.join(timeout=10)
    assert done == [[]]


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_an_attachment_killed_anywhere_is_done_again_by_the_same_command(tmp_path, monkeypatch):
    names = ("open", "write", "fsync", "fdatasync", "rename", "unlink", "pwrite", "mkdir")
    for nth in range(1, 200):
        place = Place(tmp_path / str(nth))
        run = place.root / "run1"
        run.mkdir(parents=True)
        Ledger.create(run, secret(1), PLAN, DATA).close()
        left = itertools.count(1 - nth)

        def killing(real: Callable[..., Any], left: Any = left) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(left) == 0:
                    raise Killed
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(os, name, killing(getattr(os, name)))
            try:
                place.resume(1)
            except Killed:
                pass
            else:
                break
        ledger = place.resume(1)
        ledger.begin(FINGERPRINT, NONCE)
        charge(ledger, 0)
        assert len(place.shared().reservations()) == 1
        assert place.shared().total_events() == [CENTRAL, PRIVATE]
    assert nth > 20


def test_the_files_are_for_their_owner_alone(place):
    before = os.umask(0)
    try:
        ledger = place.begin(1)
    finally:
        os.umask(before)
    assert place.folder.stat().st_mode & 0o777 == 0o700
    assert (place.folder / "mirrors").stat().st_mode & 0o777 == 0o700
    for name in ("ledger.jsonl", "dataset.key", "lock", f"mirrors/{ledger.run}"):
        assert (place.folder / name).stat().st_mode & 0o777 == 0o600


def test_the_mirror_is_synced_before_the_entry_is_returned(place, monkeypatch):
    ledger = place.begin(1)
    synced = []
    real = os.fdatasync
    mirror = place.folder / "mirrors" / ledger.run
    monkeypatch.setattr(os, "fdatasync", lambda d: (synced.append(mirror.read_bytes()), real(d))[-1])
    charge(ledger, 0)
    assert len(synced) == 1
    assert ledger.macs[-1].encode() in synced[0]
    assert ledger.macs[-2].encode() in synced[0]


def test_the_default_place_is_the_users_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder("chest-xrays") == tmp_path / "curriculumdp" / "chest-xrays"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder("a") == tmp_path / ".local" / "state" / "curriculumdp" / "a"
    for name in ("", ".", "..", "a/b", "/etc", "a b", "-x", "a" * 101, "a\n"):
        with pytest.raises(LedgerError, match="data set name"):
            state_folder(name)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be created") as raised:
        DatasetLedger.open(tmp_path / "file" / "state", DEFINITION)
    assert "\n" not in str(raised.value)
