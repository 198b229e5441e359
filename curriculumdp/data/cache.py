"""A disk cache of decoded images: decoded once, mapped by all ranks of a node, never held twice in memory.

PRIVATE: mode 0600 in a folder of mode 0700. A cache that is damaged, or was made from other files or with other
settings, counts as absent. An interrupted decode leaves its part, which the next one continues.

The file: MAGIC, key (64), CRC-32 (8), one byte of facts per image, padding to a page, the images.
"""

import errno
import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from curriculumdp.data.images import DataError
from curriculumdp.data.pixels import Fact

FORMAT = 2  # increment when the same files decode to something else
MAGIC = b"curriculumdp images 2 \n\n"
HEAD = len(MAGIC) + 64 + 8
PAGE = 4096
CHUNK = 2**24  # bytes checked at once
PART = ".part"
NO_CHECKSUM = b"-" * 8


def cache_key(files: Sequence[Path], settings: Mapping[str, object]) -> str:
    """Return a digest of the settings and of every file's path, size, mtime and ctime.

    Tools can set a file's mtime but not its ctime, so ctime reveals a replaced file whose mtime was preserved.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, dict(settings)]).encode())
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None
        facts = [str(file), state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def load_pixels(path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the cached images, uint8 of `shape`, mapped from the file; None where there is no valid cache for `key`.

    The mapping is copy-on-write: processes share the file's memory, and nothing they write reaches it.
    """
    try:
        whole = np.memmap(path, dtype=np.uint8, mode="c")
    except (OSError, ValueError):
        return None
    if len(whole) != _start(shape[0]) + prod(shape) or whole[:HEAD].tobytes() != _head(key, _checksum(whole)):
        return None
    return np.asarray(whole[_start(shape[0]) :]).reshape(shape)


class Partial:
    """A cache in the making: images in any order, from any thread. `facts` uint8 [N] is 0 for what is missing."""

    def __init__(self, path: Path, key: str, shape: tuple[int, ...]) -> None:
        """Open the part that an interrupted decode with the same key left, or begin one.

        Raises DataError, and BlockingIOError while another process writes it.
        """
        self.path, self.part = path, part_of(path)
        self._key, self._shape, self._start = key, shape, _start(shape[0])
        self.facts = np.zeros(shape[0], dtype=np.uint8)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = self._opened()
        except (BlockingIOError, FileNotFoundError):  # another process writes it, or has just finished it
            raise BlockingIOError from None
        except OSError as error:
            raise self._failure(error) from None

    def _opened(self) -> int:
        file = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino != self.part.stat().st_ino:
                raise BlockingIOError
            size, head = self._start + prod(self._shape), _head(self._key, NO_CHECKSUM)
            if os.fstat(file).st_size == size and os.pread(file, HEAD, 0) == head:
                self.facts[:] = np.frombuffer(os.pread(file, len(self.facts), HEAD), dtype=np.uint8)
            else:
                os.ftruncate(file, 0)
                os.ftruncate(file, size)
                _write(file, head, 0)
        except BaseException:
            os.close(file)
            raise
        return file

    def put(self, row: int, pixels: np.ndarray) -> None:
        """Write an image. Raises DataError where the disk is full."""
        content = np.ascontiguousarray(pixels).data
        try:
            _write(self._file, content, self._start + row * content.nbytes)
        except OSError as error:
            raise self._failure(error) from None

    def keep(self, facts: np.ndarray) -> None:
        """Sync the images, then say in the file which of them are there."""
        try:
            os.fsync(self._file)
            _write(self._file, facts.tobytes(), HEAD)
        except OSError as error:
            raise self._failure(error) from None

    def finish(self, facts: np.ndarray) -> np.ndarray:
        """Give the complete cache its name, so that another process sees all of it or none; return its images."""
        self.keep(facts)
        try:
            whole = np.memmap(self.part, dtype=np.uint8, mode="r")
            _write(self._file, _head(self._key, _checksum(whole)), 0)
            os.fsync(self._file)
            self.part.replace(self.path)
        except OSError as error:
            raise self._failure(error) from None
        images = load_pixels(self.path, self._key, self._shape)
        if images is None:
            raise DataError(f"{self.path}: the decoded images changed on disk: check the disk and try again")
        return images

    def close(self) -> None:
        os.close(self._file)

    def _failure(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path}: cannot cache the decoded images ({error.strerror}): free disk space or fix the permissions"
        )


def part_of(path: Path) -> Path:
    """Return where the unfinished cache that will become `path` is."""
    return path.with_name(path.name + PART)


def _start(count: int) -> int:
    return -(-(HEAD + count) // PAGE) * PAGE


def _head(key: str, checksum: bytes) -> bytes:
    return MAGIC + key.encode() + checksum


def _checksum(whole: np.ndarray) -> bytes:
    """Return the CRC-32 of all that follows the head, in hex."""
    sum_ = 0
    for start in range(HEAD, len(whole), CHUNK):
        sum_ = zlib.crc32(whole[start : start + CHUNK].data, sum_)
    return b"%08x" % sum_


def _write(file: int, content: bytes | memoryview, offset: int) -> None:
    if os.pwrite(file, content, offset) != len(memoryview(content).cast("B")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class InMemory:
    """Images decoded into memory, where no cache is wanted."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.facts = np.zeros(shape[0], dtype=np.uint8)
        self._images = np.empty(shape, dtype=np.uint8)

    def put(self, row: int, pixels: np.ndarray) -> None:
        self._images[row] = pixels

    def keep(self, facts: np.ndarray) -> None:
        """Keep nothing: an interrupted decode starts anew."""

    def finish(self, facts: np.ndarray) -> np.ndarray:
        assert (facts & Fact.READY).all()
        return self._images

    def close(self) -> None:
        """Release nothing."""
