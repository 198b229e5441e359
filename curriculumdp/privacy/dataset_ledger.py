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
"""

import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curriculumdp.privacy.chain import Chain, LedgerError, canonical
from curriculumdp.privacy.ledger import Ledger
from curriculumdp.privacy.ledger_files import data_mac, read_key, subkey, write_key
from curriculumdp.privacy.lock import waiting_lock
from curriculumdp.privacy.mirror import RunMirror
from curriculumdp.privacy.randomness import KEY_BYTES
from curriculumdp.privacy.release import Release

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
    """The ledger in `folder`. PRIVATE. Any number of processes may use it at once."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder, self._key = folder, key

    @classmethod
    def open(cls, folder: Path, definition: Mapping[str, object]) -> "DatasetLedger":
        """The data set's ledger, made (mode 0700) if there is none. `definition`: what a unit is, δ, units.

        Raises LedgerError, naming the field and both values, if the data set was defined otherwise by its
        first run; and if the ledger or its key is gone but runs were reserved in it.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / MIRRORS).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"{folder}: the data set's ledger cannot be made ({error.strerror})") from error
        with waiting_lock(folder / LOCK):
            if (folder / LEDGER).exists():
                opened = cls(folder, read_key(folder / KEY))
                opened._require_definition(definition)
                return opened
            return cls._create(folder, definition)

    @classmethod
    def _create(cls, folder: Path, definition: Mapping[str, object]) -> "DatasetLedger":
        if any((folder / MIRRORS).iterdir()):
            raise LedgerError(
                f"{folder / LEDGER}: the data set's ledger is missing, but runs were mirrored beside it: "
                "bring it back"
            )
        path = folder / KEY
        if path.exists() and path.stat().st_size != KEY_BYTES:
            path.unlink()  # cut by a kill; nothing was written under it
        if not path.exists():
            write_key(path, secrets.token_bytes(KEY_BYTES))
        made = cls(folder, read_key(path))
        first = {"kind": "definition", "version": VERSION, "definition": dict(definition)}
        Chain.create(folder / LEDGER, subkey(made._key, "chain"), KIND, first).close()
        return made

    def attach(self, ledger: Ledger, epsilon: float, data: Sequence[NDArray[Any]]) -> list[str]:
        """Reserves a run's planned cost, or checks where it stands; from then on its ledger is mirrored here.

        To be called once, right after the run's ledger was made or opened. Returns warnings: lines for the
        user, such as that the data are not what an earlier run of that name saw. Raises LedgerError if the
        run's ledger is not the one that was mirrored last, or one entry ahead of it (a crash between them).
        """
        content = data_mac(subkey(self._key, "content"), *data)
        mirror = RunMirror(self.folder / MIRRORS / ledger.run, subkey(self._key, "mirror"), self._extend)
        with waiting_lock(self.folder / LOCK):
            known = self._reservations()
            if ledger.run in known:
                mirror.check(ledger.macs)
            elif ledger.releases():
                raise LedgerError(
                    f"{self.folder}: does not know run {ledger.run}, which has spent already: the data set's "
                    "ledger was exchanged or reset; bring it back"
                )
            else:
                mirror.create(*ledger.head())
                self._append(Reservation(ledger.run, tuple(ledger.planned), float(epsilon), content))
        ledger.mirror = mirror
        return [
            f"{self.folder}: the data are not those that run {other.run} saw under this name; the cost of "
            "both is composed all the same"
            for other in known.values()
            if not hmac.compare_digest(other.content, content)
        ]

    def reservations(self) -> list[Reservation]:
        """Each run's reservation in force, in the order in which the runs began."""
        with waiting_lock(self.folder / LOCK):
            return list(self._reservations().values())

    def total_releases(self) -> list[Release]:
        """What all runs together may have cost, as rows to compose; equal rows are added up."""
        counts: dict[Release, int] = {}
        for reservation in self.reservations():
            for release in reservation.releases:
                row = replace(release, count=0)
                counts[row] = counts.get(row, 0) + release.count
        return [replace(row, count=count) for row, count in counts.items()]

    def _extend(self, run: str, releases: Sequence[Release]) -> None:
        """Puts another cost in force for a run: more than planned, or at its end what it really was."""
        with waiting_lock(self.folder / LOCK):
            before = self._reservations()[run]
            if before.releases != tuple(releases):
                self._append(replace(before, releases=tuple(releases)))

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
        return [json.loads(body) for body in chain.bodies]

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

    def _require_definition(self, definition: Mapping[str, object]) -> None:
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
