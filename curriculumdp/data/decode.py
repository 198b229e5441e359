"""Decoding in a stream: several images at once, stoppable between two, all bad ones named together."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from curriculumdp.data.cache import InMemory, Partial
from curriculumdp.data.images import BadImage, DataError
from curriculumdp.data.listing import Listing
from curriculumdp.data.pixels import Decoded, Fact

MAX_NAMED = 20
# Pillow decodes and resizes without Python's lock. A picture may need 256 MB while it is decoded.
THREADS = min(16, len(os.sched_getaffinity(0)))
POLL, TELL, KEEP = 0.1, 10.0, 30.0  # seconds between looking for a signal, progress lines, syncs of the cache


class Stopped(Exception):
    """Decoding was asked to stop; what was decoded into a cache is kept."""


def decode(
    listing: Listing, target: Partial | InMemory, say: Callable[[str], None], stop: Callable[[], bool]
) -> np.ndarray:
    """Decode every image of `listing` that `target` lacks and return all, uint8 [N, C, size, size]. PRIVATE.

    Raises DataError, which names up to MAX_NAMED images that cannot be used, and Stopped soon after `stop()` is true.
    `say` gets lines without counts.
    """
    todo = np.flatnonzero(target.facts == 0)
    if len(todo):
        stream = _Stream(listing.opened(), target)
        try:
            stream.run(todo, say, stop)
        finally:
            target.keep(target.facts)
        if stream.bad:
            raise _complaint(listing, stream.bad)
    return target.finish(target.facts)


class _Stream:
    """Threads that take one row after the other; `bad` collects (row, message) of what cannot be used."""

    def __init__(self, decoded: Callable[[int], Decoded], target: Partial | InMemory) -> None:
        self._decoded, self._target = decoded, target
        self.bad: list[tuple[int, BadImage]] = []
        self._halt = threading.Event()
        self._done = 0

    def run(self, todo: np.ndarray, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        rows = iter(todo.tolist())  # threads may share a list's iterator
        told = kept = time.monotonic()
        with ThreadPoolExecutor(min(THREADS, len(todo))) as pool:
            try:
                working = {pool.submit(self._work, rows) for _ in range(min(THREADS, len(todo)))}
                while working:
                    done, working = wait(working, timeout=POLL)
                    for worker in done:
                        worker.result()
                    if working and stop():
                        raise Stopped
                    if time.monotonic() - told > TELL:
                        told = time.monotonic()
                        say(f"decoding the images: {100 * self._done // len(todo)} %")
                    if time.monotonic() - kept > KEEP:
                        self._target.keep(self._target.facts.copy())
                        kept = time.monotonic()
            finally:
                self._halt.set()

    def _work(self, rows: Iterator[int]) -> None:
        for row in rows:
            if self._halt.is_set():
                return
            try:
                pixels, facts = self._decoded(row)
            except BadImage as error:
                self.bad.append((row, error))
                if len(self.bad) >= MAX_NAMED:
                    self._halt.set()
                continue
            self._target.put(row, pixels)
            self._target.facts[row] = facts | Fact.READY
            self._done += 1


def _complaint(listing: Listing, bad: list[tuple[int, BadImage]]) -> DataError:
    """Return the error for images that cannot be used, one reason after the other with all its images."""
    errors = [error for _, error in sorted(bad, key=lambda pair: pair[0])][:MAX_NAMED]
    if len(errors) == 1:
        return errors[0]
    names: dict[str, list[str]] = {}
    for error in errors:
        names.setdefault(error.reason, []).append(error.name)
    least = "at least " if len(bad) >= MAX_NAMED else ""
    reasons = "; ".join(f"{', '.join(named)}: {reason}" for reason, named in names.items())
    return DataError(f"{listing.origin}: {least}{len(errors)} images cannot be used: {reasons}")
