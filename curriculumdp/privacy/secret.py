"""A run's secret: 32 bytes of the operating system's entropy, from which all private draws derive their keys.

Keys are derived by HKDF-SHA256 (RFC 5869) for one purpose and context each. The file that keeps the secret between
processes is for its owner alone, and is erased when the run is sealed.
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
    """The 32 bytes that all private draws of a run derive from. PRIVATE above all: who has it has the noise.

    It shows itself in no repr, format, traceback, pickle or copy, and leaves the process only through `save`.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def create(cls) -> "RunSecret":
        """A new secret from the operating system's entropy."""
        return cls()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "RunSecret":
        """The secret that is `raw` (32 bytes): for a saved one, and for tests that need one secret twice."""
        if (size := len(raw)) != KEY_BYTES:
            del raw  # a traceback may show the names of its frames
            raise SecretError(f"a run's secret has {KEY_BYTES} bytes, not {size}")
        made = cls()
        made._held[:] = raw
        return made

    @classmethod
    def load(cls, path: Path) -> "RunSecret":
        """The secret saved at `path`; refuses a file that others may read or that was cut short."""
        return cls.from_bytes(read_private(path, "the run's secret"))

    def save(self, path: Path) -> None:
        """Writes a new file of mode 0600 and syncs it and its folder; refuses to overwrite one."""
        try:
            write_private(path, bytes(self._held), "the run's secret")
            return
        except BaseException as error:
            error.__cause__ = error.__context__ = None
            failed = error.with_traceback(None)
        raise failed  # out here: the frames of before hold the bytes, and a traceback may show them

    def key(self, purpose: str, **context: int | float | str) -> bytes:
        """32 bytes for one purpose and place: HKDF-SHA256, info = canonical JSON of (purpose, context).

        Other purposes or contexts give independent keys, which tell nothing about each other or the secret.
        """
        if any(not isinstance(value, int | float | str) for value in context.values()):
            raise TypeError("a key's context holds int, float and str only")
        info = json.dumps(
            [PROTOCOL, purpose, context], sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info.encode()).derive(
            bytes(self._held)
        )

    def identity(self) -> str:
        """32 hex digits that name the secret and tell nothing about it or any other key."""
        return self.key("identity")[:16].hex()

    def __repr__(self) -> str:
        return "RunSecret(hidden)"

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError("a run's secret is never pickled or copied")


def read_private(path: Path, what: str) -> bytes:
    """The content of a key file; SecretError if it is missing, unreadable, or open to others."""
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise SecretError(f"{path}: {what} can be read by others (mode {mode & 0o777:o}): chmod 600 it")
        return path.read_bytes()
    except OSError as error:
        raise SecretError(f"{path}: {what} cannot be read ({error.strerror})") from error


def write_private(path: Path, content: bytes, what: str) -> None:
    """Writes a new file of mode 0600, synced with its folder; SecretError if it exists or cannot be."""
    try:
        write_new(path, content)
    except OSError as error:
        raise SecretError(f"{path}: {what} could not be written ({error.strerror})") from error


def erase_private(path: Path) -> None:
    """Overwrites a key file with zeros and removes it. (A journal or a flash drive may keep old blocks.)"""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync(path.parent)
