"""A run's ledger holds only with its key, secret, facts and data, and nothing in it changes unnoticed."""

import json
import os

import numpy as np
import pytest

from curriculumdp.ledger.run_files import data_mac
from curriculumdp.ledger.run_ledger import Ledger, LedgerError, ledger_is_missing
from curriculumdp.privacy.secret import RunSecret
from tests.support.run_ledger import (
    DATA,
    FACTS,
    FINGERPRINT,
    NONCE,
    PLAN,
    RAW,
    a_sum,
    charge,
    counts,
    create,
    reopen,
    secret,
)


@pytest.mark.parametrize(
    ("field", "value"), [("parameters", 41), ("delta", 1e-6), ("config", "ab13"), ("new", 1)]
)
def test_a_changed_fact_is_refused_with_both_values(tmp_path, field, value):
    create(tmp_path).close()
    with pytest.raises(LedgerError, match=f"{field} is {value!r} but was {FACTS.get(field)!r}") as raised:
        reopen(tmp_path, facts=FACTS | {field: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("array", range(3))
def test_changed_data_are_refused(tmp_path, array):
    create(tmp_path).close()
    changed = [part.copy() for part in DATA]
    changed[array].flat[1] += 1
    with pytest.raises(LedgerError, match="data: the images, labels or units are not those"):
        reopen(tmp_path, data=changed)
    with pytest.raises(LedgerError, match="data"):
        reopen(tmp_path, data=DATA[:2])


def test_another_secret_is_refused(tmp_path):
    create(tmp_path).close()
    with pytest.raises(LedgerError, match="not the secret"):
        reopen(tmp_path, secret=RunSecret.create())


def test_the_datas_mac_sees_values_shapes_types_and_cuts():
    flat = np.arange(6, dtype=np.int64)
    variants = [
        [flat],
        [flat.reshape(2, 3)],
        [flat.reshape(3, 2)],
        [flat.astype(np.uint64)],
        [flat[:3], flat[3:]],
        [flat[:0], flat],
        [flat, flat[:0]],
        [],
        [flat[::-1]],
    ]
    assert len({data_mac(b"k", *arrays) for arrays in variants}) == len(variants)
    assert data_mac(b"k", flat) != data_mac(b"l", flat)
    table = np.arange(6).reshape(2, 3)
    assert data_mac(b"k", table.T) == data_mac(b"k", np.ascontiguousarray(table.T))
    assert data_mac(b"k", table.astype(">i8")) == data_mac(b"k", table)


def test_equal_secrets_and_sums_give_equal_ledgers(tmp_path):
    contents = []
    for name in ("one", "two"):
        ledger = create(tmp_path / name)
        for step in range(3):
            charge(ledger, step)
        contents.append((tmp_path / name / "ledger.jsonl").read_bytes())
    assert contents[0] == contents[1]
    other = Ledger.create(tmp_path, RunSecret.create(), PLAN, DATA)
    other.begin(FINGERPRINT, NONCE)
    assert json.loads(charge(other, 0))["sum_mac"] not in contents[0].decode()


def test_neither_the_sum_nor_the_secret_nor_the_data_show(tmp_path):
    ledger = create(tmp_path)
    charge(ledger, 0)
    content = (tmp_path / "ledger.jsonl").read_bytes()
    keys = [RAW, secret().key("ledger"), secret().key("noise", entry="00")]
    for hidden in [*keys, *(key.hex().encode() for key in keys), a_sum(0).tobytes()[:8]]:
        assert hidden not in content
    assert (tmp_path / "ledger.key").read_bytes() != RAW


def test_the_files_are_for_their_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        create(tmp_path)
    finally:
        os.umask(before)
    for name in ("ledger.jsonl", "ledger.key", "secret"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_key_open_to_others_is_refused(tmp_path):
    create(tmp_path).close()
    (tmp_path / "ledger.key").chmod(0o644)
    for attempt in (reopen, Ledger.read):
        with pytest.raises(LedgerError, match="chmod 600"):
            attempt(tmp_path)


def test_a_checkpoints_head_must_be_one_the_ledger_had(tmp_path):
    ledger = create(tmp_path)
    heads = [ledger.head()]
    for step in range(3):
        charge(ledger, step)
        heads.append(ledger.head())
    for head in heads:
        ledger.check_prefix(*head)
    (count, mac), (_, last) = heads[1], heads[3]
    for wrong in ((count + 1, mac), (count - 1, mac), (7, last), (0, mac), (-1, last), (count, "")):
        with pytest.raises(LedgerError, match="truncated, replaced or rolled back"):
            ledger.check_prefix(*wrong)


def test_a_ledger_cut_back_to_a_whole_line_is_seen_by_the_checkpoint(tmp_path):
    ledger = create(tmp_path)
    for step in range(3):
        charge(ledger, step)
    head = ledger.head()
    ledger.close()
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(LedgerError, match="has 5 entries and does not start with the 6"):
        reopen(tmp_path).check_prefix(*head)


def test_every_changed_byte_of_a_runs_ledger_is_refused(tmp_path):
    ledger = create(tmp_path)
    for step in range(3):
        charge(ledger, step)
    ledger.close()
    path = tmp_path / "ledger.jsonl"
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(content):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place)
            with pytest.raises(LedgerError):
                reopen(tmp_path)
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert counts(reopen(tmp_path)) == {"private": 3}


def test_a_missing_or_exchanged_key_is_refused(tmp_path):
    create(tmp_path).close()
    key = tmp_path / "ledger.key"
    content = key.read_bytes()
    key.write_bytes(bytes(32))
    with pytest.raises(LedgerError, match="line 1"):
        reopen(tmp_path)
    key.write_bytes(content[:5])
    with pytest.raises(LedgerError, match="missing or truncated"):
        reopen(tmp_path)
    key.unlink()
    with pytest.raises(LedgerError, match="missing or truncated"):
        reopen(tmp_path)
    with pytest.raises(LedgerError, match=r"ledger\.key"):
        Ledger.read(tmp_path)


def test_a_ledger_that_was_taken_away_is_noticed(tmp_path):
    create(tmp_path).close()
    assert not ledger_is_missing(tmp_path)
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(LedgerError, match=r"ledger\.key shows that there was one"):
        ledger_is_missing(tmp_path)
    (tmp_path / "ledger.key").unlink()
    (tmp_path / "checkpoints" / "0-central-0000002").mkdir(parents=True)
    with pytest.raises(LedgerError, match="0-central-0000002 shows that there was one"):
        ledger_is_missing(tmp_path)
    assert (tmp_path / "secret").exists()


def test_a_new_folder_has_no_ledger(tmp_path):
    assert ledger_is_missing(tmp_path / "nothing")
    (tmp_path / "checkpoints" / ".0-central-0000002.unfinished").mkdir(parents=True)
    assert ledger_is_missing(tmp_path)


def test_an_entry_that_was_changed_after_it_was_checked_is_not_replayed(tmp_path):
    ledger = create(tmp_path)
    for step in range(3):
        charge(ledger, step)
    path = tmp_path / "ledger.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"step":1', b'"step":2'))
    with pytest.raises(LedgerError, match="line 5 was changed while the ledger was in use"):
        charge(ledger, 1)
    path.write_bytes(content)
    charge(ledger, 1)
