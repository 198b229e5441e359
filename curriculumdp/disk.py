"""Files that survive a power cut: folders synced, files replaced wholly or not at all."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes a folder's list of files durable: a new, renamed or removed name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Makes a folder, and those above it, whose names survive a power cut, if need be.

    The folder's own name is synced even if it was there: a process killed in here may not have got to that.
    """
    above = [folder, *(level for level in folder.parents if not level.exists())]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for level in above:
        sync_folder(level.parent)
