"""A run's ledger: the plan and every event, written and synced before the event's noise exists.

The file is a chain of MACed lines (`chain.py`) in the run's private folder; `entries.py` lists its entries.

An event's noise key is derived from its entry's bytes, which `charge` returns only once they are on disk:
noise cannot be drawn for an event that is not in the ledger, and no two sums, rates, multipliers or steps
share noise. Which steps are replayed rather than charged: `replay.py`.
"""

import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculumdp.ledger.chain import Chain, LedgerError, Macs, canonical
from curriculumdp.ledger.entries import VERSION, changed_fields, charge_entry, incarnation_entry, plan_entry
from curriculumdp.ledger.lock import RunLock
from curriculumdp.ledger.mirror import Mirror
from curriculumdp.ledger.replay import ChargedSteps
from curriculumdp.ledger.run_files import (
    CHECKPOINTS,
    KEY,
    KIND,
    LEDGER,
    OR_START_NEW,
    SECRET,
    data_mac,
    key_of_begun,
    ledger_is_missing,
    open_chain,
    read_key,
    subkey,
    write_key,
)
from curriculumdp.ledger.spending import Allowance, BudgetSpent, Spending, no_allowance
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


class ReplayMismatch(LedgerError):
    """A replayed step gave a sum other than the recorded one: it needs new keys and a new charge."""


class Ledger:
    """One run's ledger, open (rank 0 only). PRIVATE, as is its key; `events()` is public.

    Formal guarantee: the bytes that `charge` returned are on disk (unless the disk lies about fsync);
    `events()` counts every entry, those of earlier incarnations included; and no count exceeds the plan's
    unless `allowance`, given the composed events that would result, returned True.
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
        self.fingerprint: Mapping[str, object] = {}
        self._begun = 0
        for number, body in enumerate(chain.bodies(), start=1):
            try:
                self._apply(number - 1, json.loads(body))
            except (KeyError, TypeError, AttributeError, AccountingError) as error:
                raise LedgerError(
                    f"{chain.path}: line {number} was written by another version of this program ({error})"
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
        """Create a ledger whose first entry holds `plan`: plain values, with the planned rows as dicts under `events`.

        The secret must already be saved. The ledger's key is derived from it (which reveals nothing about it, and
        makes equal secrets and sums give equal ledgers) and is kept when the secret is erased.
        """
        key = secret.key("ledger")
        first = plan_entry(secret.identity(), data_mac(subkey(key, "data"), *data), plan)
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
        """Open the ledger of a run that resumes. `facts`: fields of the plan with their current values.

        Without `data` the data are not checked, and the ledger can be sealed but not charged. Raises LedgerError
        naming the field and both values if a fact, the data or the secret differs from the run's start; naming
        the line if the file was changed.
        """
        key = key_of_begun(folder, secret)
        ledger = cls(open_chain(folder, key, to_append=True), key, allowance)
        try:
            if ledger.run != secret.identity():
                raise LedgerError(f"{folder / SECRET}: is not the secret that the run started with")
            for field, now in facts.items():
                ledger._require_fact(field, now)
            ledger._chargeable = data is not None
            if data is not None and ledger._first["data"] != data_mac(subkey(key, "data"), *data):
                raise LedgerError(
                    f"{folder / LEDGER}: data: the images, labels or units are not those that the run "
                    f"started with: restore them, {OR_START_NEW}"
                )
        except LedgerError:
            ledger.close()
            raise
        return ledger

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """Open and check, read-only, the ledger of a run that does not resume here (sealed, or only inspected)."""
        key = read_key(folder / KEY)
        chain = open_chain(folder, key, to_append=False)
        chain.close()
        return cls(chain, key, no_allowance)

    @property
    def run(self) -> str:
        """The run's unique name: 32 hex digits derived from its secret."""
        return str(self._first["run"])

    @property
    def plan(self) -> dict[str, Any]:
        """The caller's plan as of creation, in JSON types."""
        return dict(self._first["plan"])

    @property
    def planned(self) -> list[PrivacyEvent]:
        """The planned events."""
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
        """The key for the checkpoints' MACs. PRIVATE."""
        return subkey(self._key, "checkpoint")

    def head(self) -> tuple[int, str]:
        """Return (number of entries, MAC of the last one), which a checkpoint stores."""
        return len(self.macs), self.macs[-1]

    @property
    def incarnation_mac(self) -> str:
        """The MAC of the incarnation's entry, hence of all before it. The incarnation's keys are derived from it.

        Each of two copies of a run folder may start an incarnation of the same number; this tells them apart.
        """
        if self.incarnation is None:
            raise self._refused("no incarnation has started: nothing may be drawn")
        return self.macs[self._begun]

    def check_prefix(self, count: int, mac: str) -> None:
        """Raise LedgerError unless this ledger once had exactly this head: it was not truncated or replaced."""
        if not 0 < count <= len(self.macs) or not hmac.compare_digest(self.macs[count - 1], mac):
            raise self._refused(
                f"has {len(self.macs)} entries and does not start with the {count} that "
                f"the checkpoint recorded: it was truncated, replaced or rolled back; restore it, {OR_START_NEW}"
            )

    def events(self) -> list[PrivacyEvent]:
        """Return everything charged, over all incarnations, one row per kind of event. PUBLIC."""
        return self._spending.events()

    def clip_norms(self) -> dict[str, float]:
        """Return the clip norm of each charged phase. PUBLIC."""
        return dict(self._spending.clip_norms)

    def granted(self) -> list[PrivacyEvent]:
        """Return what this run may cost without asking again; for a sealed run, what it did cost. PUBLIC."""
        return self.events() if self.sealed is not None else self._spending.granted()

    def keep_within(self, reserved: Sequence[PrivacyEvent]) -> bool:
        """Limit this run's cost to `reserved` if that covers everything charged; return whether it does."""
        return self._spending.bind(reserved)

    def begin(self, fingerprint: Mapping[str, object], nonce: str) -> int:
        """Start a process's part of the run, before any charge, and return the incarnation's number.

        The incarnation is the last one if its fingerprint is equal, else a new one. `nonce`: 64 hex digits, fresh
        from the operating system in each process, for the steps that the ledger does not hold yet.
        """
        if self.incarnation is None:
            self.new_incarnation(fingerprint, "the run begins")
        changed = changed_fields(self.fingerprint, fingerprint)
        if changed:
            self.new_incarnation(fingerprint, f"changed: {', '.join(changed)}")
        if nonce != self.nonce:
            self._append({"kind": "start", "nonce": nonce})
        self._started = True
        assert self.incarnation is not None
        return self.incarnation

    def new_incarnation(self, fingerprint: Mapping[str, object], why: str) -> int:
        """Enter a new incarnation with its fingerprint, so that all keys are new, and return its number."""
        number = 0 if self.incarnation is None else self.incarnation + 1
        self._append(incarnation_entry(number, fingerprint, why))
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
        """Charge one step's event; return the bytes of its entry, the source of its noise key, once they are on disk.

        `total` int64 [P] is the un-noised sum (PRIVATE; only its MAC is kept). A step is charged once per incarnation,
        and its replay must match: another sum raises ReplayMismatch; another rate, multiplier or clip norm raises
        LedgerError. Raises BudgetSpent, before anything is written, if the charge would exceed ε.
        """
        self._require_open()
        if total.dtype != np.int64 or total.ndim != 1:
            raise TypeError(f"expected one flat int64 sum, got {total.dtype} {total.shape}")
        if not (self._started and self._chargeable):
            raise self._refused(
                "nothing can be charged before the data are checked and an incarnation has started"
            )
        sum_mac = data_mac(subkey(self._key, "sum"), total)
        numbers = sample_rate, noise_multiplier, clip_norm
        entry = charge_entry(phase, step, self.incarnation, *numbers, sum_mac)
        recorded = self.charged.find(phase, step)
        if recorded is not None:
            return self._replayed(recorded.entry_of(step), entry)
        self._spending.take_clip_norm(phase, clip_norm)
        self._spending.admit(self._spending.row(phase, sample_rate, noise_multiplier), self._reserve)
        return self._append(entry)

    def _reserve(self, events: Sequence[PrivacyEvent]) -> bool:
        return self.mirror is None or self.mirror.reserve(events, *self.head())

    def seal(self, reason: str) -> None:
        """Seal the ledger, after which nothing can be charged. `reason`: planned, budget or operator."""
        self._append({"kind": "sealed", "reason": reason})
        if self.mirror is not None:
            self.mirror.end(self.events(), *self.head())

    def close(self) -> None:
        """Close the file. What was read remains available."""
        self._chain.close()

    def _replayed(self, recorded: int, entry: Mapping[str, Any]) -> bytes:
        """Return the bytes of the entry at index `recorded` if the replayed step matches it exactly."""
        body = self._chain.body(recorded)
        before = json.loads(body)
        where = f"phase {entry['phase']}, step {entry['step']}"
        for field, was in before.items():
            if entry[field] != was and field != "sum_mac":
                raise self._refused(f"{where}: {field} is {entry[field]!r}, but {was!r} was charged")
        if not hmac.compare_digest(entry["sum_mac"], before["sum_mac"]):
            raise ReplayMismatch(f"{self._chain.path}: {where}: the replayed sum is not the recorded one")
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
        """Update this object's state by the entry at index `index` of the file."""
        kind = entry["kind"]
        if kind == "plan" and index == 0 and entry["version"] == VERSION:
            self._first = entry
            self._spending = Spending(
                [PrivacyEvent(**row) for row in entry["plan"]["events"]], self._allowance
            )
        elif kind == "incarnation":
            self.incarnation, self.fingerprint = entry["number"], entry["fingerprint"]
            self._begun, self.charged = index, ChargedSteps()
        elif kind == "start":
            self.nonce = str(entry["nonce"])
        elif kind == "charge" and entry["incarnation"] == self.incarnation and self.nonce is not None:
            phase, spending = entry["phase"], self._spending
            spending.take_clip_norm(phase, entry["clip_norm"])
            spending.add(spending.row(phase, entry["sample_rate"], entry["noise_multiplier"]))
            self.charged.add(phase, entry["step"], self.nonce, index)
        elif kind == "sealed":
            self.sealed = entry["reason"]
        else:
            raise self._refused(f"line {index + 1} was written by another version of this program")

    def _refused(self, why: str) -> LedgerError:
        return LedgerError(f"{self._chain.path}: {why}")

    def _require_open(self) -> None:
        if self._interrupted:
            # Otherwise the entry that the mirror refused would be returned as a replay.
            raise self._refused("an earlier write failed: run the same command again")
        if self.sealed is not None:
            raise self._refused(f"the run is sealed ({self.sealed}): nothing more can be charged")

    def _require_fact(self, field: str, now: object) -> None:
        was = self.plan.get(field)
        if canonical(was) != canonical(now):
            raise self._refused(
                f"{field} is {now!r} but was {was!r} when the run started: change it back, {OR_START_NEW}"
            )
