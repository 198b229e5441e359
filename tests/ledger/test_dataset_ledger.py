"""All runs on a named data set are composed, under one definition, and its ledger is whole or refused."""

import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from curriculumdp.ledger.dataset_ledger import DatasetLedger, state_folder
from curriculumdp.ledger.lock import waiting_lock
from curriculumdp.ledger.run_ledger import Ledger, LedgerError
from tests.support.dataset import (
    CENTRAL,
    DATA,
    DEFINITION,
    FINGERPRINT,
    NONCE,
    PLAN,
    PRIVATE,
    Place,
    charge,
    secret,
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
