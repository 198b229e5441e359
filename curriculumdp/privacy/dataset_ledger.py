"""The ledger of one named data set: all runs on it together, and where each run's own ledger stands.

It lies outside the run folders (the user's state folder, or where the config says), so that a run folder that
was rolled back or copied is noticed. A run reserves its planned cost here before its first query, and after
each entry of its own ledger, before the noise, its head (count, MAC) is mirrored here. Files of the folder:

| file         | holds                                                                                    |
|--------------|------------------------------------------------------------------------------------------|
| ledger.jsonl | a chain: `definition` (unit, δ, …) once; `reserve` (run, releases, epsilon, content MAC) |
| dataset.key  | its key                                                                                  |
| mirrors/RUN  | the run's head (`mirror.py`)                                                             |
| lock         | held while the chain is read or written                                                  |

A definition with a `budget` makes the ledger a limit (`filter.py`): what is reserved, over all runs, never
passes it. It is set by the data set's first run and never changed, and every run on the data must name it.
"""

import hmac
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curriculumdp.privacy.chain import Chain, LedgerError, canonical
from curriculumdp.privacy.filter import RenyiFilter
from curriculumdp.privacy.ledger import Ledger
from curriculumdp.privacy.ledger_files import data_mac, read_key, subkey, write_key
from curriculumdp.privacy.lock import waiting_lock
from curriculumdp.privacy.mirror import RunMirror
from curriculumdp.privacy.randomness import KEY_BYTES, make_folder
from curriculumdp.privacy.release import MAX_COUNT, AccountingError, Release

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
    releases: tuple[Release, ...]
    epsilon: float
    content: str


class DatasetLedger:
    """The ledger in `folder`. PRIVATE. Any number of processes may use it at once.

    Formal guarantee, where the definition has a `budget`: all releases of all runs that were attached here are
    (budget, δ)-differentially private together, however later runs were chosen, as long as the folder is not
    rolled back. `limit` is the filter that sees to it, else None.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder, self._key = folder, key
        self.limit: RenyiFilter | None = None

    @classmethod
    def open(cls, folder: Path, definition: Mapping[str, object]) -> "DatasetLedger":
        """The data set's ledger, made (mode 0700) if there is none. `definition`: unit, units, δ, budget or None.

        Raises LedgerError, naming the field and both values, if the data set was defined otherwise by its
        first run; and if the ledger or its key is gone but runs were reserved in it.
        """
        try:
            make_folder(folder, 0o700)
            make_folder(folder / MIRRORS, 0o700)
        except OSError as error:
            raise LedgerError(f"{folder}: the data set's ledger cannot be made ({error.strerror})") from error
        with waiting_lock(folder / LOCK):
            if not (folder / LEDGER).exists():
                cls._create(folder, definition)
            opened = cls(folder, read_key(folder / KEY))
            opened._take_definition(definition)
            return opened

    @classmethod
    def _create(cls, folder: Path, definition: Mapping[str, object]) -> None:
        if any((folder / MIRRORS).iterdir()):
            raise LedgerError(
                f"{folder / LEDGER}: the data set's ledger is missing, but runs were mirrored beside it: "
                "bring it back"
            )
        first = {"kind": "definition", "version": VERSION, "definition": dict(definition)}
        if definition.get("budget") is not None:  # the order is fixed here, before any query, and kept
            first["order"] = _filter(definition).order
        path = folder / KEY
        if path.exists() and path.stat().st_size != KEY_BYTES:
            path.unlink()  # cut by a kill; nothing was written under it
        if not path.exists():
            write_key(path, secrets.token_bytes(KEY_BYTES))
        Chain.create(folder / LEDGER, subkey(read_key(path), "chain"), KIND, first).close()

    def require_room(self, planned: Sequence[Release]) -> None:
        """Raises LedgerError, one line, if a new run's plan would pass the budget as things stand now.

        `attach` asks again, and reserves: this is to stop before anything of the run is made.
        """
        with waiting_lock(self.folder / LOCK):
            self._require_room(self._reservations(), planned)

    def attach(self, ledger: Ledger, epsilon: float, data: Sequence[NDArray[Any]] | None) -> list[str]:
        """Reserves a run's planned cost, or checks where it stands; from then on its ledger is mirrored here.

        To be called once, right after the run's ledger was made or opened; without `data` (a run that only
        ends) nothing is reserved for a run that is not known. Returns warnings: lines for the user, such as
        that the data are not what an earlier run of that name saw. Raises LedgerError if the run's ledger is
        not the one that was mirrored last, or one entry ahead of it (a crash between them), and if there is
        no room for the run within the budget.
        """
        mirror = RunMirror(self.folder / MIRRORS / ledger.run, subkey(self._key, "mirror"), self._extend)
        with waiting_lock(self.folder / LOCK):
            known = self._reservations()
            content = "" if data is None else data_mac(subkey(self._key, "content"), *data)
            if ledger.run in known:
                mirror.check(ledger.macs)
                self._settle(known, ledger)
            elif ledger.releases():
                raise LedgerError(
                    f"{self.folder}: does not know run {ledger.run}, which has spent already: the data set's "
                    "ledger was exchanged or reset; bring it back"
                )
            elif data is None:
                return []
            else:
                self._require_room(known, ledger.planned)
                mirror.create(*ledger.head())
                self._append(Reservation(ledger.run, tuple(ledger.planned), float(epsilon), content))
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

    def total_releases(self) -> list[Release]:
        """What all runs together may have cost, as rows to compose; equal rows are added up, to 10⁶ a row."""
        every = [release for reservation in self.reservations() for release in reservation.releases]
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

    def _extend(self, run: str, releases: Sequence[Release]) -> bool:
        """Whether another cost of a run is in force now: more than planned, or at its end what it really was.

        False, and the cost before stays in force, where the budget has no room for it.
        """
        with waiting_lock(self.folder / LOCK):
            known = self._reservations()
            return self._replace(known, replace(known[run], releases=tuple(releases)))

    def _replace(self, known: dict[str, Reservation], wanted: Reservation) -> bool:
        before = known[wanted.run]
        if before.releases == wanted.releases:
            return True
        if self.limit is not None:
            more = self.limit.share(wanted.releases) - self.limit.share(before.releases)
            if more > 0 and self._share(known) + more > 1:
                return False
        self._append(wanted)
        return True

    def _settle(self, known: dict[str, Reservation], ledger: Ledger) -> None:
        """Puts in force what a run may do without asking, where a kill has left another reservation.

        A sealed run's unused steps are given back; a plan from which an extension took is made whole again.
        """
        before, granted = known[ledger.run], ledger.granted()
        if ledger.sealed is None and all(
            count <= _counted(before.releases).get(row, 0) for row, count in _counted(granted).items()
        ):
            return
        if not self._replace(known, replace(before, releases=tuple(granted))):
            raise LedgerError(f"{self.folder}: {self._no_room(known, granted)}")

    def _share(self, known: Mapping[str, Reservation]) -> float:
        assert self.limit is not None
        return sum(self.limit.share(reservation.releases) for reservation in known.values())

    def _require_room(self, known: Mapping[str, Reservation], planned: Sequence[Release]) -> None:
        if self.limit is not None and self._share(known) + self.limit.share(planned) > 1:
            raise LedgerError(f"{self.folder}: {self._no_room(known, planned)}")

    def _no_room(self, known: Mapping[str, Reservation], planned: Sequence[Release]) -> str:
        assert self.limit is not None
        left = max(0.0, 1 - self._share(known))
        worth = self.limit.worth(left)
        return (
            f"data.budget is {self.limit.budget:g} for all runs on this data set together (δ = "
            f"{self.limit.delta:g}): {left:.1%} of it is left, and this run's plan takes "
            f"{self.limit.share(planned):.1%}: "
            + (f"set privacy.epsilon to about {_floored(worth)}, or " if worth and worth >= 0.01 else "")
            + "end unfinished runs by launch/export.py, which gives back what they did not use"
        )

    def _chain(self, to_append: bool) -> Chain:
        return Chain.open(self.folder / LEDGER, subkey(self._key, "chain"), KIND, to_append)

    def _append(self, reservation: Reservation) -> None:
        chain = self._chain(to_append=True)
        try:
            chain.append({"kind": "reserve", **asdict(reservation)})
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
            if entry.pop("kind") != "reserve":
                raise LedgerError(
                    f"{self.folder / LEDGER}: line {number} is of another version of this program"
                )
            entry["releases"] = tuple(Release(**row) for row in entry["releases"])
            found[entry["run"]] = Reservation(**entry)
        return found

    def _take_definition(self, definition: Mapping[str, object]) -> None:
        entry = self._entries()[0]
        if entry["kind"] != "definition" or entry["version"] != VERSION:
            raise LedgerError(f"{self.folder / LEDGER}: was made by another version of this program")
        was = entry["definition"]
        for field in sorted({*was, *definition}):
            if canonical(was.get(field)) != canonical(definition.get(field)):
                now, first = definition.get(field), was.get(field)
                raise LedgerError(
                    f"{self.folder}: {field} is {now!r} here and {first!r} for the data set's first run: "
                    "all runs on one data set must agree, or name another data set"
                )
        if was.get("budget") is not None:
            self.limit = _filter(was, entry["order"])


def _filter(definition: Mapping[str, Any], order: int | None = None) -> RenyiFilter:
    try:
        return RenyiFilter(definition["budget"], definition["delta"], order)
    except AccountingError as error:
        raise LedgerError(f"data.budget: {error}") from None


def _counted(releases: Sequence[Release]) -> dict[Release, int]:
    """How often each row (a release without its count) is used."""
    counts: dict[Release, int] = {}
    for release in releases:
        row = replace(release, count=0)
        counts[row] = counts.get(row, 0) + release.count
    return counts


def _floored(value: float) -> str:
    """Two digits, never above the value."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.floor(value / unit) * unit:.2g}"
