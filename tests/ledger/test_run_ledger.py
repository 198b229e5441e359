"""What a run is charged is in its ledger before its noise can exist, and is counted as often as it must be."""

import json
import os
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from curriculumdp.ledger.run_ledger import BudgetSpent, Ledger, LedgerError, ReplayMismatch
from curriculumdp.privacy.event import PrivacyEvent
from tests.support.run_ledger import (
    CENTRAL,
    DATA,
    FINGERPRINT,
    NONCE,
    PLAN,
    PRIVATE,
    a_sum,
    charge,
    counts,
    create,
    reopen,
    resume,
    secret,
)


def test_a_run_is_planned_charged_reopened_and_goes_on(tmp_path):
    ledger = create(tmp_path)
    first = [charge(ledger, step, CENTRAL) for step in range(3)]
    ledger.close()
    ledger = reopen(tmp_path)
    assert ledger.begin(FINGERPRINT, NONCE) == 0
    assert ledger.plan == json.loads(json.dumps(PLAN))
    assert ledger.planned == [CENTRAL, PRIVATE]
    assert counts(ledger) == {"central": 3}
    assert [charge(ledger, step, CENTRAL) for step in range(3)] == first
    charge(ledger, 0)
    assert ledger.events() == [CENTRAL, PrivacyEvent("private", "subsampled_gaussian", 0.02, 1.5, 1)]
    assert [entry["kind"] for entry in ledger.entries()] == [
        *("plan", "incarnation", "start"),
        *["charge"] * 4,
    ]


def test_charge_returns_the_bytes_of_an_entry_that_is_on_disk_and_synced(tmp_path, monkeypatch):
    ledger = create(tmp_path)
    snapshots: list[bytes] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda d: (snapshots.append((tmp_path / "ledger.jsonl").read_bytes()), real(d))[-1]
    )
    for step in range(3):
        entry = charge(ledger, step)
        assert b'{"body":' + entry + b',"mac":"' in snapshots[-1]
        assert len(snapshots) == step + 1
        assert json.loads(entry) == {
            "kind": "charge",
            "phase": "private",
            "step": step,
            "incarnation": 0,
            "sample_rate": 0.02,
            "noise_multiplier": 1.5,
            "clip_norm": 1.0,
            "sum_mac": json.loads(entry)["sum_mac"],
        }


def test_a_replay_is_charged_once_and_gives_the_same_noise_key(tmp_path):
    ledger = create(tmp_path)
    before = [secret().key("noise", entry=charge(ledger, step).hex()) for step in range(5)]
    size = (tmp_path / "ledger.jsonl").stat().st_size
    ledger.close()
    ledger = reopen(tmp_path)
    ledger.begin(FINGERPRINT, NONCE)
    assert [secret().key("noise", entry=charge(ledger, step).hex()) for step in range(5)] == before
    assert (tmp_path / "ledger.jsonl").stat().st_size == size
    assert counts(ledger) == {"private": 5}


@pytest.mark.parametrize("place", [0, 17, 39])
def test_a_replay_with_another_sum_is_a_mismatch_and_writes_nothing(tmp_path, place):
    ledger = create(tmp_path)
    charge(ledger, 0)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    other = a_sum(0)
    other[place] += 1
    with pytest.raises(ReplayMismatch, match="step 0"):
        charge(ledger, 0, total=other)
    with pytest.raises(ReplayMismatch):
        charge(ledger, 0, total=a_sum(0)[:-1])
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"), [("sample_rate", 0.03), ("noise_multiplier", 1.4), ("clip_norm", 2.0)]
)
def test_a_replay_with_another_parameter_is_refused_by_its_name(tmp_path, field, value):
    ledger = create(tmp_path)
    charge(ledger, 0)
    with pytest.raises(LedgerError, match=f"{field} is {value}") as raised:
        charge(ledger, 0, **{field: value})
    assert not isinstance(raised.value, ReplayMismatch)
    assert "\n" not in str(raised.value)


def test_what_was_not_planned_cannot_be_charged(tmp_path):
    ledger = create(tmp_path)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    for change in ({"sample_rate": 0.03}, {"noise_multiplier": 1.4999}):
        with pytest.raises(LedgerError, match=next(iter(change))):
            charge(ledger, 0, **change)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_every_charge_has_its_own_noise_key(tmp_path):
    ledger = create(tmp_path)
    entries = [charge(ledger, step, event) for event in (CENTRAL, PRIVATE) for step in range(3)]
    ledger.new_incarnation(FINGERPRINT, "a replayed sum differs")
    entries += [charge(ledger, step) for step in range(3)]
    other = create(tmp_path / "other")
    entries.append(charge(other, 0, total=a_sum(0) + 1))
    assert len(set(entries)) == len(entries)


def test_only_one_flat_integer_sum_is_charged(tmp_path):
    ledger = create(tmp_path)
    for total in (np.zeros(3), np.zeros(3, np.int32), np.zeros((1, 3), np.int64)):
        with pytest.raises(TypeError, match="flat int64"):
            charge(ledger, 0, total=total)


def test_nothing_is_charged_before_an_incarnation_begins(tmp_path):
    ledger = Ledger.create(tmp_path, secret(), PLAN, DATA)
    with pytest.raises(LedgerError, match="incarnation"):
        charge(ledger, 0)


def test_an_equal_fingerprint_goes_on_and_another_begins_anew(tmp_path):
    ledger = create(tmp_path)
    assert ledger.begin(FINGERPRINT, NONCE) == 0
    assert ledger.begin(FINGERPRINT | {"threads": 2}, NONCE) == 1
    assert list(ledger.entries())[-1]["why"] == "changed: threads"
    assert ledger.begin(FINGERPRINT | {"threads": 2}, NONCE) == 1
    ledger.close()
    ledger = reopen(tmp_path)
    assert ledger.begin(FINGERPRINT | {"threads": 2}, NONCE) == 1
    assert ledger.begin(FINGERPRINT, NONCE) == 2
    assert ledger.begin({"threads": 1}, NONCE) == 3
    assert ledger.begin(FINGERPRINT, NONCE) == 4
    assert ledger.new_incarnation(FINGERPRINT, "mismatch") == 5


def test_steps_done_again_under_a_new_incarnation_are_charged_again(tmp_path):
    ledger = create(tmp_path)
    for step in range(4):
        charge(ledger, step)
    ledger.new_incarnation(FINGERPRINT, "mismatch")
    for step in range(2, 6):
        charge(ledger, step)
    assert counts(ledger) == {"private": 8}
    assert counts(Ledger.read(tmp_path)) == {"private": 8}


def test_within_the_plan_nobody_is_asked_and_beyond_it_the_budget_ends_the_run(tmp_path):
    asked: list[list[PrivacyEvent]] = []

    def allowance(events: Sequence[PrivacyEvent]) -> bool:
        asked.append(list(events))
        return sum(event.count for event in events) <= 26

    ledger = create(tmp_path, allowance)
    for step in range(3):
        charge(ledger, step, CENTRAL)
    for step in range(20):
        charge(ledger, step)
    assert asked == []
    ledger.new_incarnation(FINGERPRINT, "mismatch")
    for step in range(3):
        charge(ledger, step)
    assert asked
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(BudgetSpent):
        charge(ledger, 3)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert counts(ledger) == {"central": 3, "private": 23}
    charge(ledger, 2)  # a replay costs nothing, whatever is left


def test_a_reopened_run_beyond_its_plan_is_still_bounded(tmp_path):
    ledger = create(tmp_path, lambda events: sum(r.count for r in events) <= 5)
    for incarnation in range(5):
        if incarnation:
            ledger.new_incarnation(FINGERPRINT, "mismatch")
        charge(ledger, 0, CENTRAL)
    ledger.close()
    ledger = resume(tmp_path, allowance=lambda events: sum(r.count for r in events) <= 5)
    ledger.new_incarnation(FINGERPRINT, "mismatch")
    for event in (CENTRAL, PRIVATE):
        with pytest.raises(BudgetSpent):
            charge(ledger, 0, event)


def test_a_sealed_ledger_takes_nothing_more(tmp_path):
    ledger = create(tmp_path)
    charge(ledger, 0)
    ledger.seal("planned")
    ledger.close()
    for opened in (ledger, reopen(tmp_path), Ledger.read(tmp_path)):
        assert opened.sealed == "planned"
        attempts = (
            lambda o=opened: charge(o, 0),
            lambda o=opened: charge(o, 1),
            lambda o=opened: o.new_incarnation(FINGERPRINT, "again"),
            lambda o=opened: o.seal("operator"),
        )
        for attempt in attempts:
            with pytest.raises(LedgerError, match=r"sealed \(planned\)"):
                attempt()
    assert counts(Ledger.read(tmp_path)) == {"private": 1}


def test_a_ledger_that_is_only_read_takes_nothing(tmp_path):
    create(tmp_path).close()
    read = Ledger.read(tmp_path)
    with pytest.raises(LedgerError, match="an incarnation has started"):
        charge(read, 0)
    read.begin(FINGERPRINT, NONCE)
    with pytest.raises(LedgerError, match="open read-only"):
        charge(read, 0)


def test_without_its_data_a_ledger_can_be_sealed_but_not_charged(tmp_path):
    create(tmp_path).close()
    ledger = reopen(tmp_path, data=None)
    with pytest.raises(LedgerError, match="the data are checked"):
        charge(ledger, 0)
    ledger.seal("operator")
    assert Ledger.read(tmp_path).sealed == "operator"


class Seen:
    """A mirror that keeps what it is told."""

    def __init__(self) -> None:
        self.heads: list[tuple[int, str, str]] = []
        self.reserved: list[list[PrivacyEvent]] = []
        self.refuse = False

    def advance(self, count: int, mac: str, previous: str) -> None:
        if self.refuse:
            raise LedgerError("a copy has gone on")
        self.heads.append((count, mac, previous))

    def reserve(self, events: Sequence[PrivacyEvent], count: int, mac: str) -> bool:
        self.reserved.append(list(events))
        return True

    def end(self, events: Sequence[PrivacyEvent], count: int, mac: str) -> None:
        self.reserved.append(list(events))


def test_every_entry_is_mirrored_before_its_bytes_are_returned(tmp_path):
    ledger = create(tmp_path, lambda events: sum(r.count for r in events) < 30)
    ledger.mirror = seen = Seen()
    charge(ledger, 0)
    charge(ledger, 0)
    ledger.new_incarnation(FINGERPRINT, "mismatch")
    ledger.seal("operator")
    assert [head[:2] for head in seen.heads] == list(enumerate(ledger.macs, start=1))[3:]
    assert [head[2] for head in seen.heads] == list(ledger.macs)[2:-1]
    assert seen.reserved == [ledger.events()]


def test_without_the_mirrors_consent_no_entry_is_returned_and_it_is_still_counted(tmp_path):
    ledger = create(tmp_path)
    ledger.mirror = seen = Seen()
    seen.refuse = True
    with pytest.raises(LedgerError, match="copy"):
        charge(ledger, 0)
    assert counts(Ledger.read(tmp_path)) == {"private": 1}
    seen.refuse = False
    for step in (0, 1):
        with pytest.raises(LedgerError, match="earlier write failed"):
            charge(ledger, step)


def test_what_goes_beyond_the_plan_is_reserved_before_it_is_charged(tmp_path):
    ledger = create(tmp_path, lambda events: sum(r.count for r in events) <= 12)
    ledger.mirror = seen = Seen()
    for incarnation in range(4):
        if incarnation:
            ledger.new_incarnation(FINGERPRINT, "mismatch")
        charge(ledger, 0, CENTRAL)
    assert [[(r.name, r.count) for r in bound] for bound in seen.reserved] == [
        [("central", 4), ("private", 8)]
    ]


def test_a_long_ledger_keeps_little_of_each_entry_in_memory(tmp_path, monkeypatch):
    """A run of a million steps is replayed in tens of megabytes: nothing but MACs and offsets grows with it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    create(tmp_path, lambda _: True).close()
    ledger = resume(tmp_path, allowance=lambda _: True)
    steps = 3000
    tracemalloc.start()
    for step in range(steps):
        charge(ledger, step)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 64 * steps + 20_000
    assert len(ledger.charged.stretches) == 1
    ledger.close()
    ledger = resume(tmp_path)
    assert [charge(ledger, step) for step in (0, 7, steps - 1)]
