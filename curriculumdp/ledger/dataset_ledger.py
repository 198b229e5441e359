"""The ledger of one named data set: the costs of all runs on it, and the head of each run's own ledger.

It is kept outside the run folders, in the user's state folder or where the config says, so that a copied or rolled
back run folder is detected. A run reserves its planned cost here before its first query, and mirrors its head (count,
MAC) here after each entry of its own ledger, before the noise. Files in the folder:

| file         | holds                                                                               |
|--------------|-------------------------------------------------------------------------------------|
| ledger.jsonl | a chain: `definition` (unit, δ, …); `reserve` (run, events, epsilon, content MAC) |
| dataset.key  | the chain's key                                                                     |
| mirrors/RUN  | the run's head (`mirror.py`)                                                        |
| lock         | held while the chain is read or written                                             |

A definition with a `budget` makes the ledger a limit (`renyi_filter.py`): the reservations of all runs together
never exceed it. An operator creates such a ledger, never a run, which would spend the budget again wherever it
finds none. From the first reservation on, the definition never changes, and every run on the data must state it.
"""

import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curriculumdp.disk import make_folder
from curriculumdp.ledger.chain import Chain, LedgerError, canonical
from curriculumdp.ledger.lock import waiting_lock
from curriculumdp.ledger.mirror import RunMirror
from curriculumdp.ledger.reservations import Reservation, events_of
from curriculumdp.ledger.run_files import data_mac, read_key, subkey, write_key
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.event import AccountingError, PrivacyEvent, as_typed
from curriculumdp.privacy.renyi_filter import RenyiFilter
from curriculumdp.privacy.secret import KEY_BYTES

LEDGER, KEY, LOCK, MIRRORS = "ledger.jsonl", "dataset.key", "lock", "mirrors"
KIND, VERSION = "dataset ledger", 1
FEWER = "use fewer or noisier queries (central.queries, central.noise_multiplier), or "


def state_folder(name: str) -> Path:
    """Return a data set's default ledger folder: ($XDG_STATE_HOME or ~/.local/state)/curriculumdp/name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise LedgerError(
            f"data set name {name!r}: use 1 to 100 letters and digits, and . - _ after the first"
        )
    root = os.environ.get("XDG_STATE_HOME", "")
    state = Path(root) if os.path.isabs(root) else Path.home() / ".local" / "state"
    return state / "curriculumdp" / name


class NoRoom(LedgerError):
    """A new run's plan would exceed the budget: nothing is reserved for the run, and it has drawn nothing."""


class DatasetLedger:
    """The ledger in `folder`. PRIVATE. Any number of processes may use it at once.

    Formal guarantee, where the definition has a `budget`: all events of all runs attached here are together
    (budget, δ)-differentially private, however later runs were chosen, as long as the folder is not rolled back.
    `limit` is the filter that enforces this, or None without a budget.
    """

    def __init__(self, folder: Path, key: bytes, definition: Mapping[str, object]) -> None:
        self.folder, self._key, self.definition = folder, key, dict(definition)
        self.limit: RenyiFilter | None = None
        self.is_new = False

    @classmethod
    def find(cls, folder: Path, definition: Mapping[str, object]) -> "DatasetLedger | None":
        """Open the data set's ledger, or return None if there is none; creates nothing. Raises as `open` does."""
        try:
            if not (folder / LEDGER).exists():
                return None
        except OSError:
            return None
        with waiting_lock(folder / LOCK):
            opened = cls(folder, read_key(folder / KEY), definition)
            opened._take_definition()
            return opened

    @classmethod
    def open(cls, folder: Path, definition: Mapping[str, object]) -> "DatasetLedger":
        """Open the ledger for a run that starts. `definition`: unit, units, δ, budget or None.

        Without a budget a missing ledger is created (mode 0700), and `is_new` is set. Raises LedgerError if there is
        none and `definition` has a budget; if the data set is defined otherwise, naming the field and both values;
        and if the ledger or its key is gone but runs were reserved in it.
        """
        if definition.get("budget") is None:
            return cls._made(folder, definition, lambda before: before.get("budget") is None)
        found = cls.find(folder, definition)
        if found is None:
            cls._require_no_mirrors(folder)
            raise LedgerError(
                f"{folder}: holds no ledger of the data set, and a run with data.budget does not create one, since "
                "the budget could be spent twice: mount the folder or correct data.ledger; if no run has ever used "
                "these data, run launch/budget.py CONFIG --create"
            )
        return found

    @classmethod
    def create(cls, folder: Path, definition: Mapping[str, object]) -> "DatasetLedger":
        """Create the ledger on an operator's order, or redefine it if no run was ever reserved in it."""
        return cls._made(folder, definition, lambda _: True)

    @classmethod
    def _made(
        cls, folder: Path, definition: Mapping[str, object], may_replace: Callable[[dict[str, Any]], bool]
    ) -> "DatasetLedger":
        first = _definition_entry(definition)
        try:
            make_folder(folder, 0o700)
            make_folder(folder / MIRRORS, 0o700)
        except OSError as error:
            raise LedgerError(
                f"{folder}: the data set's ledger cannot be created ({error.strerror})"
            ) from error
        with waiting_lock(folder / LOCK):
            is_new = not (folder / LEDGER).exists()
            if is_new:
                cls._create(folder, first)
            opened = cls(folder, read_key(folder / KEY), definition)
            before = opened._defined()["definition"]
            if canonical(before) != canonical(first["definition"]) and may_replace(before):
                is_new = opened._define_anew(first)
            opened._take_definition()
            opened.is_new = is_new
            return opened

    @classmethod
    def _create(cls, folder: Path, first: Mapping[str, object]) -> None:
        cls._require_no_mirrors(folder)
        path = folder / KEY
        if path.exists() and path.stat().st_size != KEY_BYTES:
            path.unlink()  # truncated by a kill; nothing was written under it
        if not path.exists():
            write_key(path, secrets.token_bytes(KEY_BYTES))
        Chain.create(folder / LEDGER, subkey(read_key(path), "chain"), KIND, first).close()

    @classmethod
    def _require_no_mirrors(cls, folder: Path) -> None:
        mirrors = folder / MIRRORS
        if mirrors.is_dir() and any(mirrors.iterdir()):
            raise LedgerError(
                f"{folder / LEDGER}: the data set's ledger is missing, but mirrors of runs lie next to it: "
                "restore it"
            )

    def _define_anew(self, entry: Mapping[str, object]) -> bool:
        """Replace the definition if no run is reserved under it; return whether it was replaced."""
        if self._reservations():
            return False
        self._append(entry)
        return True

    def require_room(self, planned: Sequence[PrivacyEvent]) -> None:
        """Raise NoRoom if a new run's plan would currently exceed the budget.

        `attach` checks again and reserves; this check stops a run before anything of it is created.
        """
        with waiting_lock(self.folder / LOCK):
            self._require_room(self._reservations(), planned)

    def attach(self, ledger: Ledger, epsilon: float, data: Sequence[NDArray[Any]] | None) -> list[str]:
        """Reserve a run's planned cost, or check a known run's head; from then on the run's ledger is mirrored here.

        Call once, right after the run's ledger was created or opened. Without `data` (a run that only ends) nothing is
        reserved for an unknown run. Returns warnings, lines for the user, such as that the data differ from those of an
        earlier run under that name. Raises LedgerError unless the run's ledger is the one mirrored last, or one entry
        ahead of it (a crash in between), and NoRoom if a new run does not fit the budget.
        """
        mirror = RunMirror(self.folder / MIRRORS / ledger.run, subkey(self._key, "mirror"), self._extend)
        with waiting_lock(self.folder / LOCK):
            self._take_definition()  # read again: until a run is reserved, it may be replaced
            known = self._reservations()
            content = "" if data is None else data_mac(subkey(self._key, "content"), *data)
            if ledger.run in known:
                mirror.check(ledger.macs)
                self._settle(known, ledger)
            elif ledger.events():
                raise LedgerError(
                    f"{self.folder}: does not know run {ledger.run}, which was already charged: the data set's "
                    "ledger was replaced or reset; restore it"
                )
            elif data is None:
                return []
            else:
                self._require_room(known, ledger.planned)
                mirror.create(*ledger.head())
                self._reserve(Reservation(ledger.run, tuple(ledger.planned), float(epsilon), content))
        ledger.mirror = mirror
        return [
            f"{self.folder}: the data differ from those that run {other.run} used under this name; the costs "
            "of both are still composed"
            for other in known.values()
            if data is not None and not hmac.compare_digest(other.content, content)
        ]

    def reservations(self) -> list[Reservation]:
        """Return each run's current reservation, in the order in which the runs started."""
        with waiting_lock(self.folder / LOCK):
            return list(self._reservations().values())

    def total_events(self) -> list[PrivacyEvent]:
        """Return what all runs together may have cost, as rows to compose, with at most 10⁶ uses per row."""
        return events_of(self.reservations())

    def share_left(self) -> float | None:
        """Return the fraction of the budget's limit that no run has reserved, or None without a budget."""
        if self.limit is None:
            return None
        with waiting_lock(self.folder / LOCK):
            return 1 - self._share(self._reservations())

    def _extend(
        self, run: str, events: Sequence[PrivacyEvent], sealed: bool, check: Callable[[], None]
    ) -> bool:
        """Change a run's reservation: to more than planned or, at its end, to what it actually cost.

        Returns whether the new reservation is in force; if the budget has no room for it, the old one stays. `check`
        raises for a stale process, which would change the reservation of a copy that was resumed.
        """
        with waiting_lock(self.folder / LOCK):
            check()
            known = self._reservations()
            return self._replace(known, replace(known[run], events=tuple(events), sealed=sealed))

    def _replace(self, known: dict[str, Reservation], wanted: Reservation) -> bool:
        before = known[wanted.run]
        if before == wanted:
            return True
        if self.limit is not None:
            more = self.limit.share(wanted.events) - self.limit.share(before.events)
            if more > 0 and self._share(known) + more > 1:
                return False
        self._reserve(wanted)
        return True

    def _settle(self, known: dict[str, Reservation], ledger: Ledger) -> None:
        """Make a run and its reservation agree after a kill between changes of the two.

        A sealed run's unused steps are returned to the budget. Any other run keeps to what is reserved: after an
        extension that traded later steps away, another run may have taken their room.
        """
        before = known[ledger.run]
        if ledger.sealed is not None:
            settled = self._replace(known, replace(before, events=tuple(ledger.events()), sealed=True))
        else:
            settled = ledger.keep_within(before.events)
        if not settled:
            raise LedgerError(
                f"{self.folder}: run {ledger.run} has charged more than is reserved for it: the data set's "
                "ledger was rolled back; restore the newest copy"
            )

    def _share(self, known: Mapping[str, Reservation]) -> float:
        assert self.limit is not None
        return sum(self.limit.share(reservation.events) for reservation in known.values())

    def _require_room(self, known: Mapping[str, Reservation], planned: Sequence[PrivacyEvent]) -> None:
        if self.limit is not None and self._share(known) + self.limit.share(planned) > 1:
            raise NoRoom(f"{self.folder}: {self._no_room(known, planned)}")

    def _no_room(self, known: Mapping[str, Reservation], planned: Sequence[PrivacyEvent]) -> str:
        assert self.limit is not None
        fitting = self.limit.fitting_epsilon(planned, left := max(0.0, 1 - self._share(known)))
        return (
            f"data.budget is {as_typed(self.limit.budget)} for all runs on this data set together (δ = "
            f"{as_typed(self.limit.delta)}): {left:.1%} of it is left, and this run's plan takes "
            f"{self.limit.share(planned):.1%}: "
            + (f"set privacy.epsilon to {fitting}, or " if fitting else FEWER)
            + "end unfinished runs with launch/export.py RUN --out DIR --end-run, which returns what they did not use"
        )

    def _chain(self, to_append: bool) -> Chain:
        return Chain.open(self.folder / LEDGER, subkey(self._key, "chain"), KIND, to_append)

    def _reserve(self, reservation: Reservation) -> None:
        self._append({"kind": "reserve", **asdict(reservation)})

    def _append(self, entry: Mapping[str, object]) -> None:
        chain = self._chain(to_append=True)
        try:
            chain.append(entry)
        finally:
            chain.close()

    def _entries(self) -> list[dict[str, Any]]:
        chain = self._chain(to_append=False)
        chain.close()
        return [json.loads(body) for body in chain.bodies()]

    def _reservations(self) -> dict[str, Reservation]:
        """Return the last reservation of each run, from a freshly checked file. The lock must be held."""
        found: dict[str, Reservation] = {}
        for number, entry in enumerate(self._entries()[1:], start=2):
            kind = entry.pop("kind")
            if kind == "definition" and not found:
                continue
            if kind != "reserve":
                raise LedgerError(
                    f"{self.folder / LEDGER}: line {number} was written by another version of this program"
                )
            entry["events"] = tuple(PrivacyEvent(**row) for row in entry["events"])
            found[entry["run"]] = Reservation(**entry)
        return found

    def _defined(self) -> dict[str, Any]:
        """Return the entry of the current definition, the last one. The lock must be held."""
        first, *later = self._entries()
        entry = next((late for late in reversed(later) if late["kind"] == "definition"), first)
        if entry["kind"] != "definition" or entry["version"] != VERSION:
            raise LedgerError(f"{self.folder / LEDGER}: was written by another version of this program")
        return entry

    def _take_definition(self) -> None:
        entry, definition = self._defined(), self.definition
        was = entry["definition"]
        for field in sorted({*was, *definition}):
            if canonical(was.get(field)) != canonical(definition.get(field)):
                now, first = definition.get(field), was.get(field)
                advice = (
                    f"it can no longer change; set it to {first!r}"
                    if self._reservations()
                    else f"set it to {first!r}, or run launch/budget.py CONFIG --create: no run has used it yet"
                )
                raise LedgerError(
                    f"{self.folder}: {field} is {now!r} here and {first!r} for the data set: {advice}"
                )
        if was.get("budget") is not None:
            self.limit = _filter(was, entry["order"])


def _definition_entry(definition: Mapping[str, object]) -> dict[str, Any]:
    entry = {"kind": "definition", "version": VERSION, "definition": dict(definition)}
    if definition.get("budget") is not None:  # fixed here, before any query, and kept
        entry["order"] = _filter(definition).order
    return entry


def _filter(definition: Mapping[str, Any], order: int | None = None) -> RenyiFilter:
    try:
        return RenyiFilter(definition["budget"], definition["delta"], order)
    except AccountingError as error:
        raise LedgerError(f"data.budget: {error}") from None
