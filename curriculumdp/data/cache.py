"""Decoded images on disk, so that they are decoded once. PRIVATE: mode 0600 in a folder of 0700.

A cache that is damaged, or made from other files or for other settings, counts as absent.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from curriculumdp.data.images import DataError

FORMAT = 1  # raise it when what is decoded from the same files changes


def cache_key(files: Sequence[Path], settings: dict[str, object]) -> str:
    """A digest of the settings and of every file's path, size and times of change.

    Of the two times tools can set the first; the second tells of an exchanged file whose first was kept.
    """
    facts: list[object] = [FORMAT, settings]
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None
        facts.append([str(file), state.st_size, state.st_mtime_ns, state.st_ctime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def load_pixels(path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached images, uint8 of `shape`, or None."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            images = arrays["images"]
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        zlib.error,
        zipfile.BadZipFile,
    ):
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def save_pixels(path: Path, key: str, images: np.ndarray) -> None:
    """Writes beside and renames, so that another process sees the whole cache or none."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            np.savez(file, key=np.array(key), images=images)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise DataError(
            f"{path}: the decoded images cannot be kept ({error.strerror}): free the disk"
        ) from None
