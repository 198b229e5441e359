"""A run's secret: 32 bytes of operating system entropy, from which the keys of all private draws are derived.

Each key is derived by HKDF-SHA256 (RFC 5869) for one purpose and context. The file that keeps the secret between
processes is readable by its owner only, and is erased when the run is sealed.
"""

import json
import os
import secrets
from pathlib import Path
from typing import NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from curriculumdp.disk import sync, write_new
from curriculumdp.errors import UserError

KEY_BYTES = 32


PROTOCOL = "curriculumdp 1"


class SecretError(UserError):
    """A run's secret cannot be read, written or used."""


class RunSecret:
    """The 32 bytes from which all private draws of a run derive. PRIVATE above all: whoever has it has the noise.

    It never appears in a repr, format, traceback, pickle or copy, and leaves the process only through `save`.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def create(cls) -> "RunSecret":
        """Create a secret from the operating system's entropy."""
        return cls()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "RunSecret":
        """Return the secret with the 32 bytes `raw`: for a saved one, and for tests that need one twice."""
        if (size := len(raw)) != KEY_BYTES:
            del raw  # a traceback may show the frame's variables
            raise SecretError(f"a run's secret must have {KEY_BYTES} bytes, not {size}")
        made = cls()
        made._held[:] = raw
        return made

    @classmethod
    def load(cls, path: Path) -> "RunSecret":
        """Load the secret saved at `path`. Raises SecretError for a file that others may read or that is truncated."""
        return cls.from_bytes(read_private(path, "the run's secret"))

    def save(self, path: Path) -> None:
        """Write a new file of mode 0600, synced with its folder. Raises SecretError if the file exists."""
        try:
            write_private(path, bytes(self._held), "the run's secret")
            return
        except BaseException as error:
            error.__cause__ = error.__context__ = None
            failed = error.with_traceback(None)
        raise failed  # raised here: earlier frames hold the bytes, and a traceback may show them

    def key(self, purpose: str, **context: int | float | str) -> bytes:
        """Derive 32 bytes for one purpose and context: HKDF-SHA256, info = canonical JSON of (purpose, context).

        Different purposes or contexts give independent keys, which reveal nothing about each other or the secret.
        """
        if any(not isinstance(value, int | float | str) for value in context.values()):
            raise TypeError("a key's context may hold only int, float and str")
        info = json.dumps(
            [PROTOCOL, purpose, context], sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info.encode()).derive(
            bytes(self._held)
        )

    def identity(self) -> str:
        """Return 32 hex digits that identify the secret and reveal nothing about it or any other key."""
        return self.key("identity")[:16].hex()

    def __repr__(self) -> str:
        return "RunSecret(hidden)"

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError("a run's secret cannot be pickled or copied")


def read_private(path: Path, what: str) -> bytes:
    """Return the content of a key file. Raises SecretError if it is missing, unreadable, or readable by others."""
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise SecretError(f"{path}: {what} is readable by others (mode {mode & 0o777:o}): chmod 600 it")
        return path.read_bytes()
    except OSError as error:
        raise SecretError(f"{path}: {what} cannot be read ({error.strerror})") from error


def write_private(path: Path, content: bytes, what: str) -> None:
    """Write a new file of mode 0600, synced with its folder. Raises SecretError if it exists or cannot be written."""
    try:
        write_new(path, content)
    except OSError as error:
        raise SecretError(f"{path}: {what} could not be written ({error.strerror})") from error


def erase_private(path: Path) -> None:
    """Overwrite a key file with zeros and remove it. (A journal or a flash drive may keep old blocks.)"""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync(path.parent)
