"""The ledger of one named data set: all runs on it together, and where each run's own ledger stands.

It lies outside the run folders (the user's state folder, or where the config says), so that a run folder that
was rolled back or copied is noticed. A run reserves its planned cost here before its first query, and after
each entry of its own ledger, before the noise, its head (count, MAC) is mirrored here. Files of the folder:

| file         | holds                                                                                    |
|--------------|------------------------------------------------------------------------------------------|
| ledger.jsonl | a chain: `definition` (unit, δ, …); `reserve` (run, events, epsilon, content MAC)      |
| dataset.key  | its key                                                                                  |
| mirrors/RUN  | the run's head (`mirror.py`)                                                             |
| lock         | held while the chain is read or written                                                  |

A definition with a `budget` makes the ledger a limit (`filter.py`): what is reserved, over all runs, never
passes it. Such a ledger is made by an operator, never by a run, which would spend the budget again wherever it
finds none. From the first reservation on the definition never changes, and every run on the data must name it.
"""

import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curriculumdp.disk import make_folder
from curriculumdp.ledger.chain import Chain, LedgerError, canonical
from curriculumdp.ledger.lock import waiting_lock
from curriculumdp.ledger.mirror import RunMirror
from curriculumdp.ledger.run_files import data_mac, read_key, subkey, write_key
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.event import MAX_COUNT, AccountingError, PrivacyEvent, as_typed
from curriculumdp.privacy.renyi_filter import RenyiFilter
from curriculumdp.privacy.secret import KEY_BYTES

LEDGER, KEY, LOCK, MIRRORS = "ledger.jsonl", "dataset.key", "lock", "mirrors"
KIND, VERSION = "dataset ledger", 1


def state_folder(name: str) -> Path:
    """Where a data set's ledger lies by default: ($XDG_STATE_HOME or ~/.local/state)/curriculumdp/name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise LedgerError(
            f"data set name {name!r}: must be at most 100 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit"
        )
    root = os.environ.get("XDG_STATE_HOME", "")
    state = Path(root) if os.path.isabs(root) else Path.home() / ".local" / "state"
    return state / "curriculumdp" / name


@dataclass(frozen=True)
class Reservation:
    """What a run may cost, or once it is sealed has cost; `content` is a keyed MAC of the data it saw."""

    run: str
    events: tuple[PrivacyEvent, ...]
    epsilon: float
    content: str
    sealed: bool = False


class NoRoom(LedgerError):
    """A new run's plan would pass the budget: nothing is reserved for it, and nothing of it was drawn."""


class DatasetLedger:
    """The ledger in `folder`. PRIVATE. Any number of processes may use it at once.

    Formal guarantee, where the definition has a `budget`: all events of all runs that were attached here are
    (budget, δ)-differentially private together, however later runs were chosen, as long as the folder is not
    rolled back. `limit` is the filter that sees to it, else None.
    """

    def __init__(self, folder: Path, key: bytes, definition: Mapping[str, object]) -> None:
        self.folder, self._key, self.definition = folder, key, dict(definition)
        self.limit: RenyiFilter | None = None
        self.is_new = False

    @classmethod
    def find(cls, folder: Path, definition: Mapping[str, object]) -> "DatasetLedger | None":
        """The data set's ledger, or None where there is none: nothing is made. Raises as `open` does."""
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
        """The ledger for a run that begins. `definition`: unit, units, δ, budget or None.

        One without a budget is made (mode 0700) if there is none, and `is_new` then. Raises LedgerError if there
        is none and `definition` has a budget; naming the field and both values, if the data set was defined
        otherwise; and if the ledger or its key is gone but runs were reserved in it.
        """
        if definition.get("budget") is None:
            return cls._made(folder, definition, lambda before: before.get("budget") is None)
        found = cls.find(folder, definition)
        if found is None:
            cls._require_no_mirrors(folder)
            raise LedgerError(
                f"{folder}: holds no ledger of the data set, and a run with data.budget makes none, lest the "
                "budget be spent twice: mount it or correct data.ledger; if no run was ever made on these data, "
                "run launch/budget.py CONFIG --create"
            )
        return found

    @classmethod
    def create(cls, folder: Path, definition: Mapping[str, object]) -> "DatasetLedger":
        """The ledger as an operator orders it: made, or defined anew where no run was ever reserved in it."""
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
            raise LedgerError(f"{folder}: the data set's ledger cannot be made ({error.strerror})") from error
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
            path.unlink()  # cut by a kill; nothing was written under it
        if not path.exists():
            write_key(path, secrets.token_bytes(KEY_BYTES))
        Chain.create(folder / LEDGER, subkey(read_key(path), "chain"), KIND, first).close()

    @classmethod
    def _require_no_mirrors(cls, folder: Path) -> None:
        mirrors = folder / MIRRORS
        if mirrors.is_dir() and any(mirrors.iterdir()):
            raise LedgerError(
                f"{folder / LEDGER}: the data set's ledger is missing, but runs were mirrored beside it: "
                "bring it back"
            )

    def _define_anew(self, entry: Mapping[str, object]) -> bool:
        """Whether the definition was replaced: only as long as no run was reserved under it."""
        if self._reservations():
            return False
        self._append(entry)
        return True

    def require_room(self, planned: Sequence[PrivacyEvent]) -> None:
        """Raises NoRoom, one line, if a new run's plan would pass the budget as things stand now.

        `attach` asks again, and reserves: this is to stop before anything of the run is made.
        """
        with waiting_lock(self.folder / LOCK):
            self._require_room(self._reservations(), planned)

    def attach(self, ledger: Ledger, epsilon: float, data: Sequence[NDArray[Any]] | None) -> list[str]:
        """Reserves a run's planned cost, or checks where it stands; from then on its ledger is mirrored here.

        To be called once, right after the run's ledger was made or opened; without `data` (a run that only
        ends) nothing is reserved for a run that is not known. Returns warnings: lines for the user, such as
        that the data are not what an earlier run of that name saw. Raises LedgerError if the run's ledger is
        not the one that was mirrored last, or one entry ahead of it (a crash between them), and NoRoom if there
        is no room for a new run within the budget.
        """
        mirror = RunMirror(self.folder / MIRRORS / ledger.run, subkey(self._key, "mirror"), self._extend)
        with waiting_lock(self.folder / LOCK):
            self._take_definition()  # as it is now: until a run is reserved it may be replaced
            known = self._reservations()
            content = "" if data is None else data_mac(subkey(self._key, "content"), *data)
            if ledger.run in known:
                mirror.check(ledger.macs)
                self._settle(known, ledger)
            elif ledger.events():
                raise LedgerError(
                    f"{self.folder}: does not know run {ledger.run}, which has spent already: the data set's "
                    "ledger was exchanged or reset; bring it back"
                )
            elif data is None:
                return []
            else:
                self._require_room(known, ledger.planned)
                mirror.create(*ledger.head())
                self._reserve(Reservation(ledger.run, tuple(ledger.planned), float(epsilon), content))
        ledger.mirror = mirror
        return [
            f"{self.folder}: the data are not those that run {other.run} saw under this name; the cost of "
            "both is composed all the same"
            for other in known.values()
            if data is not None and not hmac.compare_digest(other.content, content)
        ]

    def reservations(self) -> list[Reservation]:
        """Each run's reservation in force, in the order in which the runs began."""
        with waiting_lock(self.folder / LOCK):
            return list(self._reservations().values())

    def total_events(self) -> list[PrivacyEvent]:
        """What all runs together may have cost, as rows to compose; equal rows are added up, to 10⁶ a row."""
        every = [event for reservation in self.reservations() for event in reservation.events]
        return [
            replace(row, count=min(MAX_COUNT, count - before))
            for row, count in _counted(every).items()
            for before in range(0, count, MAX_COUNT)
        ]

    def share_left(self) -> float | None:
        """The part of the budget's limit that no run has reserved; None without a budget."""
        if self.limit is None:
            return None
        with waiting_lock(self.folder / LOCK):
            return 1 - self._share(self._reservations())

    def _extend(self, run: str, events: Sequence[PrivacyEvent], sealed: bool) -> bool:
        """Whether another cost of a run is in force now: more than planned, or at its end what it really was.

        False, and the cost before stays in force, where the budget has no room for it.
        """
        with waiting_lock(self.folder / LOCK):
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
        """Makes a run and its reservation agree, where a kill came between a change of the two.

        A sealed run's unused steps are given back. Any other keeps to what is reserved: after an extension that
        traded later steps away, another run may have taken their room.
        """
        before = known[ledger.run]
        if ledger.sealed is not None:
            settled = self._replace(known, replace(before, events=tuple(ledger.events()), sealed=True))
        else:
            settled = ledger.keep_within(before.events)
        if not settled:
            raise LedgerError(
                f"{self.folder}: run {ledger.run} has charged more than is reserved for it: the data set's "
                "ledger was rolled back; bring the newest back"
            )

    def _share(self, known: Mapping[str, Reservation]) -> float:
        assert self.limit is not None
        return sum(self.limit.share(reservation.events) for reservation in known.values())

    def _require_room(self, known: Mapping[str, Reservation], planned: Sequence[PrivacyEvent]) -> None:
        if self.limit is not None and self._share(known) + self.limit.share(planned) > 1:
            raise NoRoom(f"{self.folder}: {self._no_room(known, planned)}")

    def _no_room(self, known: Mapping[str, Reservation], planned: Sequence[PrivacyEvent]) -> str:
        assert self.limit is not None
        left = max(0.0, 1 - self._share(known))
        fitting = self.limit.fitting_epsilon(planned, left)
        return (
            f"data.budget is {as_typed(self.limit.budget)} for all runs on this data set together (δ = "
            f"{as_typed(self.limit.delta)}): {left:.1%} of it is left, and this run's plan takes "
            f"{self.limit.share(planned):.1%}: "
            + (f"set privacy.epsilon to {fitting}, or " if fitting else "take fewer or noisier queries, or ")
            + "end unfinished runs by launch/export.py --end-run, which gives back what they did not use"
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
        """The last reservation of each run, from a freshly checked file; the lock must be held."""
        found: dict[str, Reservation] = {}
        for number, entry in enumerate(self._entries()[1:], start=2):
            kind = entry.pop("kind")
            if kind == "definition" and not found:
                continue
            if kind != "reserve":
                raise LedgerError(
                    f"{self.folder / LEDGER}: line {number} is of another version of this program"
                )
            entry["events"] = tuple(PrivacyEvent(**row) for row in entry["events"])
            found[entry["run"]] = Reservation(**entry)
        return found

    def _defined(self) -> dict[str, Any]:
        """The entry of the definition in force, the last one; the lock must be held."""
        first, *later = self._entries()
        entry = next((late for late in reversed(later) if late["kind"] == "definition"), first)
        if entry["kind"] != "definition" or entry["version"] != VERSION:
            raise LedgerError(f"{self.folder / LEDGER}: was made by another version of this program")
        return entry

    def _take_definition(self) -> None:
        entry, definition = self._defined(), self.definition
        was = entry["definition"]
        for field in sorted({*was, *definition}):
            if canonical(was.get(field)) != canonical(definition.get(field)):
                now, first = definition.get(field), was.get(field)
                advice = (
                    f"it can no longer change, set it to {first!r}"
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
    if definition.get("budget") is not None:  # the order is fixed here, before any query, and kept
        entry["order"] = _filter(definition).order
    return entry


def _filter(definition: Mapping[str, Any], order: int | None = None) -> RenyiFilter:
    try:
        return RenyiFilter(definition["budget"], definition["delta"], order)
    except AccountingError as error:
        raise LedgerError(f"data.budget: {error}") from None


def _counted(events: Sequence[PrivacyEvent]) -> dict[PrivacyEvent, int]:
    """How often each row (an event without its count) is used."""
    counts: dict[PrivacyEvent, int] = {}
    for event in events:
        row = replace(event, count=0)
        counts[row] = counts.get(row, 0) + event.count
    return counts
