"""Files that survive a power cut: folders synced, files written wholly or not at all."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable: a new, renamed or removed name survives."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it, if need be; their names survive a power cut.

    The folder's own name is synced even if it was there: a process killed in here may not have got to that.
    """
    above = [folder, *(level for level in folder.parents if not level.exists())]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for level in above:
        sync(level.parent)


def unfinished(path: Path) -> Path:
    """Return where a file or folder is written before it gets its name."""
    return path.with_name(f".{path.name}.unfinished")


def write_new(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file that must not exist yet, synced with its name. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    sync(path.parent)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write or replace a file, wholly or not at all, whatever happens. Raises OSError."""
    beside = unfinished(path)
    beside.unlink(missing_ok=True)
    try:
        write_new(beside, content, mode)
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)
