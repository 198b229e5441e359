"""What a run is charged is in its ledger before its noise can exist, and is counted as often as it must be."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.ledger import run_ledger as module
from curriculumdp.ledger.run_files import data_mac
from curriculumdp.ledger.run_ledger import BudgetSpent, Ledger, LedgerError, ReplayMismatch, ledger_is_missing
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.privacy.secret import RunSecret

RAW = bytes(range(32))
CENTRAL = PrivacyEvent("central", "subsampled_gaussian", 0.1, 5.0, 3)
PRIVATE = PrivacyEvent("private", "subsampled_gaussian", 0.02, 1.5, 20)
PLAN = {"events": [asdict(CENTRAL), asdict(PRIVATE)], "parameters": 40, "delta": 1e-5, "config": "ab12"}
FACTS = {"parameters": 40, "delta": 1e-5, "config": "ab12"}
DATA = [np.arange(48, dtype=np.uint8).reshape(3, 1, 4, 4), np.array([0, 1, 1]), np.array([0, 1, 2])]
FINGERPRINT = {"threads": 1, "torch": "2.13"}
NONCE = "5e" * 32


def secret() -> RunSecret:
    return RunSecret.from_bytes(RAW)


def create(folder: Path, allowance: Callable[[Sequence[PrivacyEvent]], bool] = lambda _: False) -> Ledger:
    folder.mkdir(exist_ok=True, parents=True)
    secret().save(folder / "secret")
    ledger = Ledger.create(folder, secret(), PLAN, DATA, allowance)
    ledger.begin(FINGERPRINT, NONCE)
    return ledger


def reopen(folder: Path, **changes: Any) -> Ledger:
    given = {"secret": secret(), "facts": FACTS, "data": DATA} | changes
    return Ledger.open(folder, **given)


def resume(folder: Path, **changes: Any) -> Ledger:
    ledger = reopen(folder, **changes)
    ledger.begin(FINGERPRINT, NONCE)
    return ledger


def a_sum(step: int) -> np.ndarray:
    return np.arange(40, dtype=np.int64) * (step + 1) - 2**40


def charge(
    ledger: Ledger, step: int, event: PrivacyEvent = PRIVATE, total: np.ndarray | None = None, **changes: Any
) -> bytes:
    given: dict[str, Any] = {
        "sample_rate": event.sample_rate,
        "noise_multiplier": event.noise_multiplier,
        "clip_norm": 1.0,
        "total": a_sum(step) if total is None else total,
    }
    return ledger.charge(event.name, step, **(given | changes))


def counts(ledger: Ledger) -> dict[str, int]:
    return {event.name: event.count for event in ledger.events()}


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


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program may catch it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The nth call into the operating system that could change the disk is done half, or not at all."""
    left = itertools.count(1 - nth)

    def patched(real: Callable[..., Any], half: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(left) != 0:
                return real(*args, **kwargs)
            if half:
                real(args[0], args[1][: len(args[1]) // 2])
            raise Killed

        return call

    for name in ("open", "write", "fsync", "rename", "unlink"):
        monkeypatch.setattr(os, name, patched(getattr(os, name), name == "write"))


def start(folder: Path) -> Ledger:
    """What a run does to begin or go on."""
    if ledger_is_missing(folder):
        made = RunSecret.create()
        made.save(folder / "secret")
        ledger = Ledger.create(folder, made, PLAN, DATA)
    else:
        ledger = Ledger.open(folder, RunSecret.load(folder / "secret"), FACTS, DATA)
    ledger.begin(FINGERPRINT, NONCE)
    return ledger


def test_a_creation_killed_anywhere_is_begun_again_by_the_same_command(tmp_path, monkeypatch):
    for nth in range(1, 100):
        folder = tmp_path / str(nth)
        folder.mkdir()
        with monkeypatch.context() as patched:
            kill_at(patched, nth)
            try:
                start(folder)
            except Killed:
                pass
            else:
                break
        ledger = start(folder)
        charge(ledger, 0)
        assert counts(Ledger.read(folder)) == {"private": 1}
        assert not list(folder.glob(".*"))
    assert nth > 12


def test_a_charge_killed_anywhere_is_charged_exactly_once_by_the_same_command(tmp_path, monkeypatch):
    for nth in range(1, 100):
        folder = tmp_path / str(nth)
        ledger = create(folder)
        charge(ledger, 0)
        returned = None
        with monkeypatch.context() as patched:
            kill_at(patched, nth)
            with contextlib.suppress(Killed):
                returned = charge(ledger, 1)
        ledger.close()
        ledger = reopen(folder)
        ledger.begin(FINGERPRINT, NONCE)
        again = charge(ledger, 1)
        assert returned in (None, again)
        assert counts(Ledger.read(folder)) == {"private": 2}
        if returned is not None:
            break
    assert nth > 2


def test_what_a_killed_process_was_given_is_in_its_ledger(tmp_path):
    """SIGKILL for real, in the middle of a process that charges as fast as it can."""
    create(tmp_path).close()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ledger = resume(tmp_path, allowance=lambda _: True)
            for step in itertools.count():
                charge(ledger, step)
                os.write(tell, b"x")
        finally:
            os._exit(1)
    os.close(tell)
    given = len(os.read(told, 1))
    while given < 40:
        given += len(os.read(told, 1))
    os.kill(child, signal.SIGKILL)
    while more := os.read(told, 100):
        given += len(more)
    os.close(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    ledger = resume(tmp_path, allowance=lambda _: True)
    assert given <= counts(ledger)["private"] <= given + 1
    charge(ledger, given)
    assert counts(ledger)["private"] == given + 1


def test_a_full_disk_is_one_clear_line_and_charges_nothing(tmp_path):
    create(tmp_path).close()
    size = (tmp_path / "ledger.jsonl").stat().st_size
    program = f"""
        import resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_run_ledger as test_ledger
        from curriculumdp.ledger.run_ledger import LedgerError
        ledger = test_ledger.resume(Path({str(tmp_path)!r}))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 400}, {size + 400}))
        for step in range(20):
            try:
                test_ledger.charge(ledger, step)
            except LedgerError as error:
                sys.exit(f"step {{step}}: {{error}}")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])},
    )
    assert done.returncode == 1
    assert "step 1: " in done.stderr
    assert "could not be written (File too large); nothing was charged" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "ledger.jsonl").read_bytes().endswith(b'"}\n')
    ledger = resume(tmp_path)
    assert counts(ledger) == {"private": 1}
    charge(ledger, 1)


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
