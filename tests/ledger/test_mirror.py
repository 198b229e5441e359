"""The mirror of a run's head is written before an entry is returned, and counts to the byte."""

import os
import shutil

import pytest

from curriculumdp.ledger.mirror import SLOT, RunMirror
from curriculumdp.ledger.run_files import subkey
from curriculumdp.ledger.run_ledger import LedgerError
from tests.support.dataset import charge


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
