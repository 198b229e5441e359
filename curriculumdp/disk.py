"""Durable file operations: folders are synced, and a file is written completely or not at all."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries (new, renamed or removed names), to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Create a folder and any missing parents, and sync their names to disk.

    The folder's own name is synced even if it exists: a process killed in this function may not have done so.
    """
    levels = [folder, *(level for level in folder.parents if not level.exists())]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for level in levels:
        sync(level.parent)


def unfinished(path: Path) -> Path:
    """Return the temporary path under which a file or folder is written before it is renamed to `path`."""
    return path.with_name(f".{path.name}.unfinished")


def write_new(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Create a file and sync it and its name. Raises OSError if it exists or cannot be written."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    sync(path.parent)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write or replace a file atomically: after a crash it is either complete or as before. Raises OSError."""
    temporary = unfinished(path)
    temporary.unlink(missing_ok=True)
    try:
        write_new(temporary, content, mode)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
