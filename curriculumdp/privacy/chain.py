"""An append-only file of lines, each with a MAC over itself and all before it: what ledgers are made of.

A line is {"body":B,"mac":M} and a newline. B is canonical JSON; Mᵢ = HMAC-SHA256(key, Mᵢ₋₁ ‖ Bᵢ), where M₀
stands for the kind of ledger. The whole line is a function of B and Mᵢ₋₁, so that every changed byte shows.
What the chain alone cannot show is a file cut back to an earlier whole line: checkpoints and mirrors do.
"""

import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path

from curriculumdp.privacy.randomness import sync_folder

_BEFORE, _BETWEEN, _AFTER = b'{"body":', b',"mac":"', b'"}'
_MAC_DIGITS = 64
_TAIL = len(_BETWEEN) + _MAC_DIGITS + len(_AFTER)


class LedgerError(ValueError):
    """A ledger was changed, does not belong here, or cannot be written: training must not go on."""


def canonical(body: object) -> bytes:
    """The one JSON text of a plain value: sorted keys, no spaces, ASCII, shortest floats; no NaN."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class Chain:
    """An open chain: `bodies[i]` (canonical JSON) and `macs[i]` (hex) of its lines."""

    def __init__(self, path: Path, key: bytes, kind: str, descriptor: int) -> None:
        self.path, self._key, self._descriptor = path, key, descriptor
        self._start = hashlib.sha256(f"curriculumdp {kind}".encode()).hexdigest()
        self.bodies: list[bytes] = []
        self.macs: list[str] = []
        self._size = 0
        self._failed = False

    @classmethod
    def create(cls, path: Path, key: bytes, kind: str, first: Mapping[str, object]) -> "Chain":
        """A new file (mode 0600) that holds `first`; it gets its name once it is whole and synced."""
        beside = unfinished(path)
        try:
            beside.unlink(missing_ok=True)
            os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            if path.exists():
                raise LedgerError(f"{path}: exists already")
            made = cls(beside, key, kind, os.open(beside, os.O_RDWR | os.O_APPEND))
            made.append(first)
            beside.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            raise LedgerError(f"{path}: the ledger could not be made ({error.strerror})") from error
        made.path = path
        return made

    @classmethod
    def open(cls, path: Path, key: bytes, kind: str, to_append: bool) -> "Chain":
        """The chain at `path`, every line checked; LedgerError names the first line that is not as written.

        A last line without its newline was never synced, so that nothing was drawn for it: if it is whole, it
        stays (and gets its newline), else it is dropped. With `to_append` False the file is not touched.
        """
        try:
            flags = os.O_RDWR | os.O_APPEND if to_append else os.O_RDONLY
            opened = cls(path, key, kind, os.open(path, flags))
            content = path.read_bytes()
        except OSError as error:
            raise LedgerError(f"{path}: the ledger cannot be read ({error.strerror})") from error
        try:
            opened._read(content, to_append)
        except BaseException:
            opened.close()
            raise
        return opened

    def append(self, body: Mapping[str, object]) -> bytes:
        """Writes and syncs one more line, and returns its body's bytes: what was returned is on disk.

        Raises LedgerError, with the file cut back to its last whole line, if the disk is full or fails; after
        that this chain takes no more lines, since what the disk holds is no longer known.
        """
        encoded = canonical(body)
        mac = self._mac(encoded)
        line = _line(encoded, mac) + b"\n"
        self._require_untouched()
        self._failed = True
        try:
            _write(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
                os.fsync(self._descriptor)
            raise LedgerError(
                f"{self.path}: the ledger could not be written ({error.strerror}), nothing was charged: "
                "free the disk and run the same command again"
            ) from error
        self._failed = False
        self._size += len(line)
        self.bodies.append(encoded)
        self.macs.append(mac)
        return encoded

    def close(self) -> None:
        """Closes the file; the chain can still be read."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _mac(self, body: bytes) -> str:
        before = self.macs[-1] if self.macs else self._start
        return hmac.new(self._key, bytes.fromhex(before) + body, hashlib.sha256).hexdigest()

    def _body_of(self, line: bytes) -> bytes | None:
        """The body of what must be the next line (without newline), or None if it is not to the byte."""
        body = line[len(_BEFORE) : -_TAIL]
        return body if hmac.compare_digest(line, _line(body, self._mac(body))) else None

    def _read(self, content: bytes, to_append: bool) -> None:
        *lines, tail = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not self._take(line):
                raise LedgerError(
                    f"{self.path}: line {number} is not as it was written: the ledger was changed or "
                    "damaged, or its key is another's"
                )
        whole = not tail or self._take(tail)
        if not whole:
            self._require_torn(tail)
        if not self.macs:
            raise LedgerError(f"{self.path}: the ledger is empty or cut in its first line")
        if to_append:
            os.ftruncate(self._descriptor, len(content) if whole else self._size)
            if whole and tail:
                _write(self._descriptor, b"\n")
            # A process killed between write and sync leaves lines that only memory holds.
            os.fsync(self._descriptor)
            sync_folder(self.path.parent)

    def _take(self, line: bytes) -> bool:
        body = self._body_of(line)
        if body is None:
            return False
        self.macs.append(self._mac(body))
        self.bodies.append(body)
        self._size += len(line) + 1
        return True

    def _require_torn(self, tail: bytes) -> None:
        """Refuses a tail that begins with a whole line: its newline was there once, and so was its noise."""
        ends = (place + len(_AFTER) for place in range(len(tail)) if tail.startswith(_AFTER, place))
        if any(self._body_of(tail[:end]) is not None for end in ends):
            raise LedgerError(
                f"{self.path}: line {len(self.macs) + 1} is followed by what is no newline: damaged"
            )

    def _require_untouched(self) -> None:
        if self._descriptor < 0:
            raise LedgerError(f"{self.path}: the ledger is open for reading only")
        if self._failed:
            raise LedgerError(f"{self.path}: an earlier write failed: run the same command again")
        here = os.fstat(self._descriptor)
        try:
            there = self.path.stat()
        except OSError:
            raise LedgerError(f"{self.path}: the ledger was removed while it was in use") from None
        if not os.path.samestat(here, there) or here.st_size != self._size:
            raise LedgerError(f"{self.path}: the ledger was changed by another process while it was in use")


def unfinished(path: Path) -> Path:
    """Where a ledger is written before it gets its name."""
    return path.with_name(f".{path.name}.unfinished")


def _line(body: bytes, mac: str) -> bytes:
    return _BEFORE + body + _BETWEEN + mac.encode() + _AFTER


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
