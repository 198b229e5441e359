"""An append-only file of lines, each with a MAC over itself and all before it; a torn last line is dropped.

A line is {"body":B,"mac":M} and a newline. B is canonical JSON; Mᵢ = HMAC-SHA256(key, Mᵢ₋₁ ‖ Bᵢ), where M₀
encodes the kind of ledger. The whole line is a function of B and Mᵢ₋₁, so any changed byte is detected.
The chain alone cannot detect a file truncated after a complete line; checkpoints and mirrors do.
"""

import contextlib
import hashlib
import hmac
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

from curriculumdp.disk import sync, write_whole
from curriculumdp.errors import UserError

_BEFORE, _BETWEEN, _AFTER = b'{"body":', b',"mac":"', b'"}'
_MAC_BYTES = 32
_TAIL = len(_BETWEEN) + 2 * _MAC_BYTES + len(_AFTER)


class LedgerError(UserError):
    """A ledger was changed, does not belong here, or cannot be written: training must stop."""


def canonical(body: object) -> bytes:
    """Return the unique JSON encoding of a plain value: sorted keys, no spaces, ASCII, shortest floats; no NaN."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class Macs(Sequence[str]):
    """The MACs of a chain's lines; `macs[i]` is hex. Stored as 32 bytes each, since a million must fit in memory."""

    def __init__(self) -> None:
        self._raw = bytearray()

    def __len__(self) -> int:
        return len(self._raw) // _MAC_BYTES

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = range(len(self))[index]
        if isinstance(found, range):
            return [self[each] for each in found]
        return self._raw[_MAC_BYTES * found : _MAC_BYTES * (found + 1)].hex()

    def append(self, mac: str) -> None:
        self._raw += bytes.fromhex(mac)


class Chain:
    """A chain of lines: `macs[i]` (hex) is held in memory, `body(i)` (canonical JSON) is read back from the file."""

    def __init__(self, path: Path, key: bytes, kind: str, descriptor: int) -> None:
        self.path, self._key, self._descriptor = path, key, descriptor
        self._start = hashlib.sha256(f"curriculumdp {kind}".encode()).hexdigest()
        self.macs = Macs()
        self._ends = array("Q", [0])  # the offset of each line, then the end of the last one
        self._failed = False

    @property
    def _size(self) -> int:
        return self._ends[-1]

    @classmethod
    def create(cls, path: Path, key: bytes, kind: str, first: Mapping[str, object]) -> "Chain":
        """Create a file (mode 0600) that holds `first`, and open it to append. Raises LedgerError if it exists.

        The file gets its name once it is complete and synced.
        """
        if path.exists():
            raise LedgerError(f"{path}: the ledger already exists")
        empty = cls(path, key, kind, -1)
        body = canonical(first)
        try:
            write_whole(path, _line(body, empty._mac(body)) + b"\n")
        except OSError as error:
            raise LedgerError(f"{path}: the ledger could not be created ({error.strerror})") from error
        return cls.open(path, key, kind, to_append=True)

    @classmethod
    def open(cls, path: Path, key: bytes, kind: str, to_append: bool) -> "Chain":
        """Open the chain at `path` and check every line. Raises LedgerError naming the first line that was changed.

        A last line without its newline was never synced, so nothing was drawn for it: a complete one is kept (and gets
        its newline), a truncated one is dropped. With `to_append` False the file is not modified.
        """
        try:
            flags = os.O_RDWR | os.O_APPEND if to_append else os.O_RDONLY
            opened = cls(path, key, kind, os.open(path, flags))
        except OSError as error:
            raise LedgerError(f"{path}: the ledger cannot be read ({error.strerror})") from error
        try:
            opened._read(to_append)
        except OSError as error:
            opened.close()
            raise LedgerError(f"{path}: the ledger cannot be read ({error.strerror})") from error
        except BaseException:
            opened.close()
            raise
        return opened

    def body(self, index: int) -> bytes:
        """Read line `index` back as canonical JSON. Raises LedgerError if it is not the line that was checked."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._ends[index])
                return self._checked(index, file.readline())
        except OSError as error:
            raise self._unreadable(error) from error

    def bodies(self) -> Iterator[bytes]:
        """Read all lines back in order, checking each as `body` does."""
        try:
            with self.path.open("rb") as file:
                for index in range(len(self.macs)):
                    yield self._checked(index, file.readline())
        except OSError as error:
            raise self._unreadable(error) from error

    def _checked(self, index: int, line: bytes) -> bytes:
        body, mac = line[len(_BEFORE) :].removesuffix(b"\n")[:-_TAIL], self.macs[index]
        if line.removesuffix(b"\n") != _line(body, mac) or self._mac(body, index) != mac:
            raise LedgerError(f"{self.path}: line {index + 1} was changed while the ledger was in use")
        return body

    def _unreadable(self, error: OSError) -> LedgerError:
        return LedgerError(f"{self.path}: the ledger cannot be read ({error.strerror})")

    def append(self, body: Mapping[str, object]) -> bytes:
        """Write and sync one more line, and return the bytes of its body: whatever was returned is on disk.

        If the disk is full or fails, truncates the file to its last complete line and raises LedgerError. The chain
        then accepts no more lines, since what the disk holds is no longer known.
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
                f"{self.path}: the ledger could not be written ({error.strerror}); nothing was charged: "
                "free disk space and run the same command again"
            ) from error
        self._failed = False
        self._ends.append(self._size + len(line))
        self.macs.append(mac)
        return encoded

    def close(self) -> None:
        """Close the file. The chain can still be read."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _mac(self, body: bytes, index: int | None = None) -> str:
        """Return the MAC (hex) of `body` as line `index`, by default the next one."""
        index = len(self.macs) if index is None else index
        before = self.macs[index - 1] if index else self._start
        return hmac.new(self._key, bytes.fromhex(before) + body, hashlib.sha256).hexdigest()

    def _body_of(self, line: bytes) -> bytes | None:
        """Return the body of what must be the next line (without newline), or None if any byte differs."""
        body = line[len(_BEFORE) : -_TAIL]
        return body if hmac.compare_digest(line, _line(body, self._mac(body))) else None

    def _read(self, to_append: bool) -> None:
        tail, complete = b"", True
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    tail, complete = line, self._take(line)
                elif not self._take(line.removesuffix(b"\n")):
                    raise LedgerError(
                        f"{self.path}: line {number} fails its MAC check: the ledger was changed or "
                        "damaged, or the key belongs to another ledger"
                    )
        if not complete:
            self._require_torn(tail)
        if not self.macs:
            raise LedgerError(f"{self.path}: the ledger is empty or its first line is truncated")
        if to_append:
            os.ftruncate(self._descriptor, self._size - (1 if complete and tail else 0))
            if complete and tail:
                _write(self._descriptor, b"\n")
            # A process killed between write and sync leaves lines that are only in the page cache.
            os.fsync(self._descriptor)
            sync(self.path.parent)

    def _take(self, line: bytes) -> bool:
        body = self._body_of(line)
        if body is None:
            return False
        self.macs.append(self._mac(body))
        self._ends.append(self._size + len(line) + 1)
        return True

    def _require_torn(self, tail: bytes) -> None:
        """Raise LedgerError if the tail starts with a complete line: its newline existed once, and so did its noise."""
        ends = (offset + len(_AFTER) for offset in range(len(tail)) if tail.startswith(_AFTER, offset))
        if any(self._body_of(tail[:end]) is not None for end in ends):
            raise LedgerError(
                f"{self.path}: line {len(self.macs) + 1} is not followed by a newline: the ledger is damaged"
            )

    def _require_untouched(self) -> None:
        if self._descriptor < 0:
            raise LedgerError(f"{self.path}: the ledger is open read-only")
        if self._failed:
            raise LedgerError(f"{self.path}: an earlier write failed: run the same command again")
        opened = os.fstat(self._descriptor)
        try:
            named = self.path.stat()
        except OSError:
            raise LedgerError(f"{self.path}: the ledger was removed while it was in use") from None
        if not os.path.samestat(opened, named) or opened.st_size != self._size:
            raise LedgerError(f"{self.path}: the ledger was changed by another process while it was in use")


def _line(body: bytes, mac: str) -> bytes:
    return _BEFORE + body + _BETWEEN + mac.encode() + _AFTER


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
