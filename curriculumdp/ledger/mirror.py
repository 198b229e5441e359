"""The head of one run's ledger, mirrored outside the run folder in a file of two slots, written in turn.

A slot holds (count, MAC of the run ledger's last entry) under a MAC of its own. Writing a head overwrites the
older slot in place and syncs it. If that write is torn, the newer slot still holds the previous head, which is
correct: the writer never got to draw the noise.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from curriculumdp.disk import write_whole
from curriculumdp.ledger.chain import LedgerError
from curriculumdp.privacy.event import PrivacyEvent

# One disk sector: a torn write of one slot leaves the other intact.
SLOT = 512
Extend = Callable[[str, Sequence[PrivacyEvent], bool, Callable[[], None]], bool]
ELSEWHERE = "this run folder was rolled back, or a copy of it was resumed: restore the newest copy"


class Mirror(Protocol):
    """What a run's ledger reports elsewhere, so that a copied or rolled back run folder is detected."""

    def advance(self, count: int, mac: str, previous: str) -> None:
        """Record that the ledger now has `count` entries, the last with `mac`, the one before with `previous`."""

    def reserve(self, events: Sequence[PrivacyEvent], count: int, mac: str) -> bool:
        """Return whether the run, whose head is (count, mac), may from now on cost up to `events` in all."""

    def end(self, events: Sequence[PrivacyEvent], count: int, mac: str) -> None:
        """Record that the run, whose head is (count, mac), is sealed and has cost `events`."""


class RunMirror:
    """The mirror of the run named by `path.name`.

    `extend(run, events, sealed)` changes the run's reservation and returns whether that was granted.
    """

    def __init__(self, path: Path, key: bytes, extend: Extend) -> None:
        self.path, self._key, self._extend = path, key, extend

    def create(self, count: int, mac: str) -> None:
        """Create the file with one head, replacing the unused one of a killed run."""
        slots = [bytes(SLOT), bytes(SLOT)]
        slots[count % 2] = self._slot(count, mac)
        try:
            write_whole(self.path, b"".join(slots))
        except OSError as error:
            raise LedgerError(f"{self.path}: the mirror could not be created ({error.strerror})") from error

    def check(self, macs: Sequence[str]) -> None:
        """Raise LedgerError unless a ledger with these MACs is at the mirrored head or one entry ahead.

        One ahead means a crash between entry and mirror: nothing was drawn for that entry, and the mirror catches up.
        """
        with self._held() as descriptor:
            count, mac = self._head(descriptor)
            if not 0 <= len(macs) - count <= 1 or not hmac.compare_digest(macs[count - 1], mac):
                raise LedgerError(
                    f"{self.path}: records {count} entries, the run has {len(macs)}: {ELSEWHERE}"
                )
            if count < len(macs):
                self._write(descriptor, len(macs), macs[-1])
            os.fdatasync(descriptor)  # a process killed before its sync leaves a head that is only cached

    def advance(self, count: int, mac: str, previous: str) -> None:
        """Mirror a new head. Raises LedgerError unless the mirrored head is the one just before it."""
        with self._held() as descriptor:
            mirrored = self._head(descriptor)
            if mirrored[0] != count - 1 or not hmac.compare_digest(mirrored[1], previous):
                raise LedgerError(
                    f"{self.path}: records {mirrored[0]} entries, the run has {count}: {ELSEWHERE}"
                )
            self._write(descriptor, count, mac)

    def reserve(self, events: Sequence[PrivacyEvent], count: int, mac: str) -> bool:
        """Change the run's reservation to `events`, and return whether that was granted.

        Raises LedgerError unless the mirrored head is (count, mac): a stale process reserves nothing.
        """
        return self._extend(self.path.name, events, False, lambda: self._require_head(count, mac))

    def end(self, events: Sequence[PrivacyEvent], count: int, mac: str) -> None:
        """Return to the budget what the run, now sealed, had reserved beyond the `events` it was charged for."""
        self._extend(self.path.name, events, True, lambda: self._require_head(count, mac))

    def _require_head(self, count: int, mac: str) -> None:
        with self._held() as descriptor:
            mirrored = self._head(descriptor)
        if mirrored[0] != count or not hmac.compare_digest(mirrored[1], mac):
            raise LedgerError(f"{self.path}: records {mirrored[0]} entries, the run has {count}: {ELSEWHERE}")

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        """Yield the file's descriptor, locked. Any disk failure is raised as one LedgerError."""
        try:
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise LedgerError(
                f"{self.path}: the mirror of this run's ledger is missing or cannot be written "
                f"({error.strerror}): restore it or free disk space"
            ) from error

    def _head(self, descriptor: int) -> tuple[int, str]:
        """Return the newest head whose slot is intact."""
        heads = []
        for index in range(2):
            slot = os.pread(descriptor, SLOT, index * SLOT)
            with contextlib.suppress(ValueError):
                count, mac = int(slot[:16], 16), slot[17:81].decode("ascii")
                if count % 2 == index and hmac.compare_digest(slot, self._slot(count, mac)):
                    heads.append((count, mac))
        if not heads:
            raise LedgerError(f"{self.path}: the mirror was changed or damaged: restore it")
        return max(heads)

    def _slot(self, count: int, mac: str) -> bytes:
        content = f"{count:016x} {mac}"
        guard = hmac.new(self._key, f"{self.path.name} {content}".encode(), hashlib.sha256).hexdigest()
        return f"{content} {guard}\n".encode().ljust(SLOT)

    def _write(self, descriptor: int, count: int, mac: str) -> None:
        slot = self._slot(count, mac)
        if os.pwrite(descriptor, slot, count % 2 * SLOT) != len(slot):
            raise OSError(0, "short write")
        os.fdatasync(descriptor)
