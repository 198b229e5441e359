"""Durable file operations: folders are synced, and a file is written completely or not at all."""

import os
from pathlib import Path

from curriculumdp.errors import UserError

LONGEST_NAME = 240  # bytes; most systems allow 255, of which `unfinished` takes some


class OutputError(UserError):
    """An output that cannot be written where it is asked for; the message is one line."""


def require_writable(path: Path, *, folder: bool = False) -> None:
    """Raise OutputError if `path` cannot become a file or, with `folder`, hold files: before the work that fills it.

    Creates nothing. Missing parents are allowed. That a disk is full shows only when it is written to.
    """
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(f"{path}: the name is too long: choose a shorter one")
    if folder and os.path.lexists(path) and not path.is_dir():
        raise OutputError(f"{path} is not a folder: choose another path")
    if not folder and path.is_dir():
        raise OutputError(f"{path} is a folder: name a file")
    there = path if folder else path.parent
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise OutputError(f"{there} is not a folder: nothing can be written below it")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} is not writable: choose another place for {path.name}")


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


def replace_folder(new: Path, folder: Path, aside: Path) -> None:
    """Rename `new` to `folder`; what was there moves to `aside`, and back on failure."""
    earlier = folder.exists()
    if earlier:
        folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        if earlier:
            aside.rename(folder)
        raise
    sync(folder.parent)
