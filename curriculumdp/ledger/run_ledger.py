"""A run's ledger: what was planned, and every event, written down and synced before its noise exists.

The file is a chain of MACed lines (`chain.py`) in the run's private folder. Its entries, by `kind`:

| kind        | holds                                                                                 |
|-------------|---------------------------------------------------------------------------------------|
| plan        | first and only once: the run's name, the MAC of its data, what the caller has planned |
| incarnation | number, fingerprint, why: from here on all keys are new                               |
| start       | nonce: a process began; what it charges first is drawn under this nonce               |
| charge    | phase, step, incarnation, sample_rate, noise_multiplier, clip_norm, sum_mac           |
| sealed      | reason: nothing comes after it                                                        |

An event's noise key is derived from its entry's bytes, which `charge` returns only once they are on disk:
noise for what is not in the ledger cannot be had, and no two sums, rates, multipliers or steps share noise.

A step that the ledger holds is replayed under the nonce that it was charged under, and charged once. All others are
drawn under the nonce of the process that does them: two copies of a run folder, whatever the arithmetic of the
machines that resume them, share what both ledgers hold and not one row more.
"""

import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from curriculumdp.ledger.chain import Chain, LedgerError, Macs, canonical
from curriculumdp.ledger.lock import RunLock
from curriculumdp.ledger.replay import ChargedSteps
from curriculumdp.ledger.run_files import (
    BEGIN_ANEW,
    CHECKPOINTS,
    KEY,
    KIND,
    LEDGER,
    SECRET,
    data_mac,
    key_of_begun,
    ledger_is_missing,
    open_chain,
    read_key,
    subkey,
    write_key,
)
from curriculumdp.ledger.spending import Allowance, BudgetSpent, Spending
from curriculumdp.privacy.event import AccountingError, PrivacyEvent
from curriculumdp.privacy.secret import RunSecret

__all__ = [
    "CHECKPOINTS",
    "SECRET",
    "BudgetSpent",
    "Ledger",
    "LedgerError",
    "Mirror",
    "ReplayMismatch",
    "RunLock",
    "ledger_is_missing",
]

VERSION = 2


class ReplayMismatch(LedgerError):
    """A step done again gave another sum than the recorded one: it needs new keys and a new charge."""


class Mirror(Protocol):
    """What is told of a run's ledger elsewhere, so that a copied or rolled back run folder is noticed."""

    def advance(self, count: int, mac: str, previous: str) -> None:
        """The ledger has `count` entries now, the last with `mac`, the one before with `previous`."""

    def reserve(self, events: Sequence[PrivacyEvent]) -> bool:
        """Whether the run may cost up to `events` in all, from now on."""

    def end(self, events: Sequence[PrivacyEvent]) -> None:
        """The run is sealed and has cost `events`."""


def no_allowance(_: Sequence[PrivacyEvent]) -> bool:
    """Allows nothing beyond the plan."""
    return False


class Ledger:
    """One run's ledger, open (rank 0 only). PRIVATE, its key too; `events()` is public.

    Formal guarantee: the bytes that `charge` returned are on disk (unless the disk lies about fsync);
    `events()` counts every entry, those of earlier incarnations included; and no count passes the plan's
    unless `allowance`, given the composed events it would come to, said yes.
    """

    def __init__(self, chain: Chain, key: bytes, allowance: Allowance) -> None:
        self._chain, self._key, self._allowance = chain, key, allowance
        self.incarnation: int | None = None
        self.nonce: str | None = None
        self.charged = ChargedSteps()
        self.sealed: str | None = None
        self.mirror: Mirror | None = None
        self._chargeable = True
        self._started = False
        self._interrupted = False
        self._fingerprint: Mapping[str, object] = {}
        self._begun = 0
        for number, body in enumerate(chain.bodies(), start=1):
            try:
                self._apply(number - 1, json.loads(body))
            except (KeyError, TypeError, AttributeError, AccountingError) as error:
                raise LedgerError(
                    f"{chain.path}: line {number} is of another version of this program ({error})"
                ) from error

    @classmethod
    def create(
        cls,
        folder: Path,
        secret: RunSecret,
        plan: Mapping[str, object],
        data: Sequence[NDArray[Any]],
        allowance: Allowance = no_allowance,
    ) -> "Ledger":
        """A new ledger whose first entry holds `plan`: plain values, `events` the planned rows as dicts.

        The secret must have been saved before. The ledger's key is derived from it (which tells nothing about
        it, and makes equal secrets and sums give equal ledgers) and stays when the secret is erased.
        """
        key = secret.key("ledger")
        first = {
            "kind": "plan",
            "version": VERSION,
            "run": secret.identity(),
            "data": data_mac(subkey(key, "data"), *data),
            "plan": dict(plan),
        }
        chain = Chain.create(folder / LEDGER, subkey(key, "chain"), KIND, first)
        write_key(folder / KEY, key)
        return cls(chain, key, allowance)

    @classmethod
    def open(
        cls,
        folder: Path,
        secret: RunSecret,
        facts: Mapping[str, object],
        data: Sequence[NDArray[Any]] | None,
        allowance: Allowance = no_allowance,
    ) -> "Ledger":
        """The ledger of a run that is to go on. `facts`: fields of the plan with the values they have now.

        Without `data` they are not compared, and the ledger can be sealed but not charged.

        Raises LedgerError, naming the field and both values, if a fact, the data or the secret is not what
        the run began with; naming the line, if the file is not as it was written.
        """
        key = key_of_begun(folder, secret)
        ledger = cls(open_chain(folder, key, to_append=True), key, allowance)
        try:
            if ledger.run != secret.identity():
                raise LedgerError(f"{folder / SECRET}: is not the secret that this run began with")
            for field, now in facts.items():
                ledger._require_fact(field, now)
            ledger._chargeable = data is not None
            if data is not None and ledger._first["data"] != data_mac(subkey(key, "data"), *data):
                raise LedgerError(
                    f"{folder / LEDGER}: data: the images, labels or units are not those that the run began "
                    f"with: bring them back, {BEGIN_ANEW}"
                )
        except LedgerError:
            ledger.close()
            raise
        return ledger

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """The ledger of a run that does not go on here (sealed, or only looked at): checked, not written."""
        key = read_key(folder / KEY)
        chain = open_chain(folder, key, to_append=False)
        chain.close()
        return cls(chain, key, no_allowance)

    @property
    def run(self) -> str:
        """The run's name among all runs: 32 hex digits, made from its secret."""
        return str(self._first["run"])

    @property
    def plan(self) -> dict[str, Any]:
        """The caller's plan as it was at creation, in JSON's types."""
        return dict(self._first["plan"])

    @property
    def planned(self) -> list[PrivacyEvent]:
        """The events that were planned."""
        return list(self._spending.planned)

    @property
    def macs(self) -> Macs:
        """The MAC of each entry."""
        return self._chain.macs

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read every entry back from the file, in order."""
        return (json.loads(body) for body in self._chain.bodies())

    @property
    def checkpoint_key(self) -> bytes:
        """The key of the checkpoints' MACs. PRIVATE."""
        return subkey(self._key, "checkpoint")

    def head(self) -> tuple[int, str]:
        """(number of entries, the last one's MAC): what a checkpoint keeps."""
        return len(self.macs), self.macs[-1]

    @property
    def incarnation_mac(self) -> str:
        """The MAC of the incarnation's entry, and so of all before it: what its keys are derived from.

        Of two copies of a run folder each may begin an incarnation of the same number; this tells them apart.
        """
        if self.incarnation is None:
            raise LedgerError(f"{self._chain.path}: no incarnation has begun: nothing may be drawn")
        return self.macs[self._begun]

    def check_prefix(self, count: int, mac: str) -> None:
        """Raises LedgerError unless this ledger once had exactly this head: it was not cut or exchanged."""
        if not 0 < count <= len(self.macs) or not hmac.compare_digest(self.macs[count - 1], mac):
            raise LedgerError(
                f"{self._chain.path}: has {len(self.macs)} entries and does not begin with the {count} that "
                f"the checkpoint saw: it was cut, exchanged or rolled back; bring it back, {BEGIN_ANEW}"
            )

    def events(self) -> list[PrivacyEvent]:
        """PUBLIC: all that was charged, over all incarnations, one row for each kind of event."""
        return self._spending.events()

    def granted(self) -> list[PrivacyEvent]:
        """PUBLIC: what this run may come to without asking anybody again; of a sealed one, what it came to."""
        return self.events() if self.sealed is not None else self._spending.granted()

    def keep_within(self, reserved: Sequence[PrivacyEvent]) -> bool:
        """Whether `reserved` covers all that was charged, and is what this run may come to without asking."""
        return self._spending.bind(reserved)

    def begin(self, fingerprint: Mapping[str, object], nonce: str) -> int:
        """Begin a process's part of the run, and return the incarnation's number. Called before any charge.

        The incarnation is the last one if its fingerprint was equal, else a new one. `nonce`: 64 hex digits, fresh
        from the operating system in each process, for the steps that the ledger does not hold yet.
        """
        if self.incarnation is None:
            self.new_incarnation(fingerprint, "the run begins")
        changed = [
            field
            for field in sorted({*self._fingerprint, *fingerprint})
            if canonical(self._fingerprint.get(field)) != canonical(fingerprint.get(field))
        ]
        if changed:
            self.new_incarnation(fingerprint, f"changed: {', '.join(changed)}")
        if nonce != self.nonce:
            self._append({"kind": "start", "nonce": nonce})
        self._started = True
        assert self.incarnation is not None
        return self.incarnation

    def new_incarnation(self, fingerprint: Mapping[str, object], why: str) -> int:
        """The number of a new incarnation, entered with its fingerprint: from here on all keys are new."""
        number = 0 if self.incarnation is None else self.incarnation + 1
        self._append({"kind": "incarnation", "number": number, "fingerprint": dict(fingerprint), "why": why})
        return number

    def charge(
        self,
        phase: str,
        step: int,
        *,
        sample_rate: float,
        noise_multiplier: float,
        clip_norm: float,
        total: NDArray[np.int64],
    ) -> bytes:
        """The bytes of the entry of one step's event, its noise key's source: returned once on disk.

        `total` int64 [P] is the un-noised sum (PRIVATE; its MAC is kept). The same step of the same
        incarnation is charged once and must come out equal: another sum raises ReplayMismatch, another rate,
        multiplier or clip norm LedgerError. BudgetSpent, before anything is written, if it would pass ε.
        """
        self._require_open()
        if total.dtype != np.int64 or total.ndim != 1:
            raise TypeError(f"one flat int64 sum is charged, not {total.dtype} {total.shape}")
        if not (self._started and self._chargeable):
            raise LedgerError(f"{self._chain.path}: no charge without data compared and an incarnation begun")
        entry = {
            "kind": "charge",
            "phase": phase,
            "step": step,
            "incarnation": self.incarnation,
            "sample_rate": float(sample_rate),
            "noise_multiplier": float(noise_multiplier),
            "clip_norm": float(clip_norm),
            "sum_mac": data_mac(subkey(self._key, "sum"), total),
        }
        recorded = self.charged.find(phase, step)
        if recorded is not None:
            return self._replayed(recorded.entry_of(step), entry)
        self._spending.admit(self._spending.row(phase, sample_rate, noise_multiplier), self._reserve)
        return self._append(entry)

    def _reserve(self, events: Sequence[PrivacyEvent]) -> bool:
        return self.mirror is None or self.mirror.reserve(events)

    def seal(self, reason: str) -> None:
        """Ends the ledger: nothing can be charged any more. `reason`: planned, budget or operator."""
        self._append({"kind": "sealed", "reason": reason})
        if self.mirror is not None:
            self.mirror.end(self.events())

    def close(self) -> None:
        """Closes the file; what was read can still be asked for."""
        self._chain.close()

    def _replayed(self, recorded: int, entry: dict[str, Any]) -> bytes:
        """The recorded entry's bytes, if the step done again is that entry to the bit."""
        body = self._chain.body(recorded)
        before = json.loads(body)
        for field, was in before.items():
            if entry[field] != was and field != "sum_mac":
                raise LedgerError(
                    f"{self._chain.path}: phase {entry['phase']}, step {entry['step']}: {field} is "
                    f"{entry[field]!r} but {was!r} was charged"
                )
        if not hmac.compare_digest(entry["sum_mac"], before["sum_mac"]):
            raise ReplayMismatch(
                f"{self._chain.path}: phase {entry['phase']}, step {entry['step']}: done again, its sum is "
                "not the recorded one"
            )
        return body

    def _append(self, entry: Mapping[str, object]) -> bytes:
        self._require_open()
        previous = self.macs[-1]
        self._interrupted = True
        written = self._chain.append(entry)
        self._apply(len(self.macs) - 1, json.loads(written))
        if self.mirror is not None:
            self.mirror.advance(len(self.macs), self.macs[-1], previous)
        self._interrupted = False
        return written

    def _apply(self, index: int, entry: dict[str, Any]) -> None:
        """Take entry number `index` of the file into account."""
        kind = entry["kind"]
        if kind == "plan" and index == 0 and entry["version"] == VERSION:
            self._first = entry
            self._spending = Spending(
                [PrivacyEvent(**row) for row in entry["plan"]["events"]], self._allowance
            )
        elif kind == "incarnation":
            self.incarnation, self._fingerprint = entry["number"], entry["fingerprint"]
            self._begun, self.charged = index, ChargedSteps()
        elif kind == "start":
            self.nonce = str(entry["nonce"])
        elif kind == "charge" and entry["incarnation"] == self.incarnation and self.nonce is not None:
            self._spending.add(
                self._spending.row(entry["phase"], entry["sample_rate"], entry["noise_multiplier"])
            )
            self.charged.add(entry["phase"], entry["step"], self.nonce, index)
        elif kind == "sealed":
            self.sealed = entry["reason"]
        else:
            raise LedgerError(f"{self._chain.path}: line {index + 1} is of another version of this program")

    def _require_open(self) -> None:
        if self._interrupted:
            # Else the entry that the mirror refused would be given out as a replay.
            raise LedgerError(f"{self._chain.path}: an earlier write failed: run the same command again")
        if self.sealed is not None:
            raise LedgerError(
                f"{self._chain.path}: the run is sealed ({self.sealed}): nothing is charged any more"
            )

    def _require_fact(self, field: str, now: object) -> None:
        was = self.plan.get(field)
        if canonical(was) != canonical(now):
            raise LedgerError(
                f"{self._chain.path}: {field} is {now!r} and was {was!r} when the run began: "
                f"go back to that, {BEGIN_ANEW}"
            )
