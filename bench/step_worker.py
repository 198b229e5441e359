"""A way of doing a step, run in its own process.

As in training, nothing else runs in that process: another way's freed blocks, allocator thresholds and caches would
change a time by 8 % and hide a peak (measured).
"""

import ctypes
import gc
import multiprocessing
import re
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench.step_nets import Net, microbatch
from bench.step_quiet import Processors
from bench.step_ways import WAYS, Unavailable, Way, prepare

MIB = 2**20
# Steps before the first turn; peak memory is measured over them.
FIRST_STEPS = 3
PEAK_RESET = Path("/proc/self/clear_refs")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Work:
    """A worker's task."""

    way: str
    net: Net
    draws: int
    device: str
    bf16: bool
    threads: int
    steps: int  # timed per turn
    clock: str  # a key of CLOCKS


@dataclass(frozen=True)
class Turn:
    """Seconds per step, and the fraction of all CPU time that others used meanwhile."""

    seconds: float
    taken_by_others: float


class Worker:
    """A way that gets ready for its turns; `missing` says why it cannot run, or can no longer, and is None otherwise.

    It is ready once `wait` has returned: several workers may get ready side by side.

    peak_mib: what the way adds at its peak to the network and its samples: resident memory on a CPU, the allocator's on
    a GPU. None if unknown: off Linux, and for the compiled step on a CPU, which would count the compiler's memory.
    """

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()
        self.peak_mib: float | None = None
        self.missing: str | None = None

    def wait(self) -> None:
        """Wait until the way has made its first steps, or could not."""
        try:
            self.peak_mib, self.missing = self._pipe.recv()
        except EOFError:
            self.missing = self._end()

    def turn(self) -> Turn | None:
        """Run one turn and return its mean time per step, after an untimed step that warms the caches.

        Returns None if the process has ended; `missing` then says so.
        """
        if self.missing is not None:
            return None
        try:
            self._pipe.send("turn")
            turn: Turn = self._pipe.recv()
        except (EOFError, OSError):  # the other end of the pipe is closed
            self.missing = f"{self._end()}, after its first steps"
            return None
        return turn

    def _end(self) -> str:
        self._process.join()
        return f"its process ended with {self._process.exitcode}"

    def close(self) -> None:
        """End the worker's process."""
        self._pipe.close()
        self._process.join(30)
        self._process.kill()


def _serve(pipe: Connection, work: Work) -> None:
    """Run the worker's process: one answer when the way is ready, one per turn, until the pipe closes."""
    warnings.filterwarnings("ignore", category=UserWarning)  # the baselines print hundreds of lines of them
    torch.set_num_threads(work.threads)
    try:
        way, peak = _start(work)
    except Unavailable as why:
        pipe.send((None, f"not run: {why}"))
        return
    except Exception as error:  # whatever another library raises must not stop the other ways
        reason = (str(error).strip() or "no message").splitlines()[0]
        pipe.send((None, f"not run: {type(error).__name__}: {reason[:160]}"))
        return
    pipe.send((peak, None))
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(_turn(way, work))


def _start(work: Work) -> tuple[Way, float | None]:
    """Run the way's first steps; return the way and their peak memory."""
    device = torch.device(work.device)
    on_gpu = device.type == "cuda"
    prepare(work.way, device)
    # What libraries allocate on first use belongs to no way: allocate it before counting starts.
    WAYS["plain"](microbatch(work.net, 1, device, work.bf16)).step()
    batch = microbatch(work.net, work.draws, device, work.bf16)
    gc.collect()
    known = on_gpu or (work.way != "compiled" and PEAK_RESET.exists())
    before = 0.0
    if on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated() / MIB
        torch.cuda.reset_peak_memory_stats()
    elif known:
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident_mib("VmRSS")
        PEAK_RESET.write_text("5")
    way = WAYS[work.way](batch)
    for _ in range(FIRST_STEPS):
        way.step()
    if not known:
        return way, None
    peak = torch.cuda.max_memory_allocated() / MIB if on_gpu else _resident_mib("VmHWM")
    _release_memory(work)
    return way, peak - before


def _resident_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _turn(way: Way, work: Work) -> Turn:
    clock = CLOCKS[work.clock]
    way.step()
    _wait(work)
    watch, began = Processors(), clock()
    for _ in range(work.steps):
        way.step()
    _wait(work)
    turn = Turn((clock() - began) / work.steps, watch.taken_by_others())
    _release_memory(work)
    return turn


def _release_memory(work: Work) -> None:
    """Free cached blocks, so that other ways do not run out of memory."""
    if work.device == "cuda":
        torch.cuda.empty_cache()


def _wait(work: Work) -> None:
    if work.device == "cuda":
        torch.cuda.synchronize()
