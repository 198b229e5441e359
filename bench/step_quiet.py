"""Check that a time was taken on an otherwise idle machine."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
# Indices into its first line, in ticks: user, nice, system, (idle, iowait,) irq, softirq, steal.
BUSY = (0, 1, 2, 5, 6, 7)


class Processors:
    """CPU time used on this machine since the object was created."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def taken_by_others(self) -> float:
        """Return the fraction of all CPU time used by other processes (and other guests of the host); 0 if unknown."""
        if not STAT.exists():
            return 0.0
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return max(0.0, others) / ((time.perf_counter() - self._began) * (os.cpu_count() or 1))


def _busy_seconds() -> float:
    if not STAT.exists():
        return 0.0
    ticks = [int(field) for field in STAT.read_text().splitlines()[0].split()[1:]]
    return sum(ticks[index] for index in BUSY) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
