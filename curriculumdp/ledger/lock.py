"""Kernel locks: released when the process that holds them ends, however it dies, with nothing to clean up."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from curriculumdp.disk import make_folder
from curriculumdp.ledger.chain import LedgerError


class RunLock:
    """A `with` block that locks a run's private folder for one process, creating it (mode 0700) if needed.

    Raises LedgerError if another process, or another lock in this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._descriptor = folder, -1

    def __enter__(self) -> "RunLock":
        try:
            make_folder(self.folder, 0o700)
            self.folder.chmod(0o700)
            self._descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            pid = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            self._close()
            raise LedgerError(
                f"{self.folder}: another process is training in this folder (pid {pid}): "
                "wait for it to finish or stop it"
            ) from None
        except OSError as error:
            self._close()
            raise LedgerError(f"{self.folder}: the folder cannot be locked ({error.strerror})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (mode 0600) inside a `with` block, waiting for other holders first."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be locked ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
