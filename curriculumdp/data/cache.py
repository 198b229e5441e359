"""A disk cache of decoded images, so that they are decoded once. PRIVATE: mode 0600 in a folder of mode 0700.

A cache that is damaged, or was made from other files or with other settings, counts as absent.
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

FORMAT = 1  # increment when the same files decode to something else


def cache_key(files: Sequence[Path], settings: dict[str, object]) -> str:
    """Return a digest of the settings and of every file's path, size, mtime and ctime.

    Tools can set a file's mtime but not its ctime, so ctime reveals a replaced file whose mtime was preserved.
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
    """Return the cached images, uint8 of `shape`, or None where there is no valid cache for `key`."""
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
    """Write a temporary file and rename it, so that another process sees the complete cache or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            np.savez(file, key=np.array(key), images=images)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot cache the decoded images ({error.strerror}): free disk space or fix the permissions"
        ) from None
