"""A way of doing a step, at work in a process of its own.

As in training, nothing else is in that process: another way's freed blocks, thresholds of the allocator and caches
would change a time by 8 % and hide a peak (measured).
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
# Steps before the first turn; the peak is taken over them.
FIRST_STEPS = 3
PEAK_BEGINS_ANEW = Path("/proc/self/clear_refs")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Work:
    """What a worker is to do."""

    way: str
    net: Net
    draws: int
    device: str
    bf16: bool
    threads: int
    steps: int  # timed in a turn
    clock: str  # a key of CLOCKS


@dataclass(frozen=True)
class Turn:
    """Seconds of a step, and the share of all processors that others took meanwhile."""

    seconds: float
    taken_by_others: float


class Worker:
    """A way, ready for its turns; `missing` says why it cannot run, where it cannot or can no longer.

    peak_mib: what it adds at its peak to the network and its samples: on a CPU the peak resident memory, on a GPU the
    allocator's; None where that is not known: off Linux, and for the compiled step on a CPU, in which the compiler's
    memory would stand.
    """

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()
        self.peak_mib: float | None = None
        self.missing: str | None = None
        try:
            self.peak_mib, self.missing = self._pipe.recv()
        except EOFError:
            self.missing = self._end()

    def turn(self) -> Turn | None:
        """The mean time of the steps of one turn, after one step that finds caches as training would.

        None where the process has ended: then `missing` says so.
        """
        if self.missing is not None:
            return None
        try:
            self._pipe.send("turn")
            turn: Turn = self._pipe.recv()
        except (EOFError, OSError):  # the pipe's other end is gone
            self.missing = f"{self._end()}, after its first steps"
            return None
        return turn

    def _end(self) -> str:
        self._process.join()
        return f"its process ended with {self._process.exitcode}"

    def close(self) -> None:
        self._pipe.close()
        self._process.join(30)
        self._process.kill()


def _serve(pipe: Connection, work: Work) -> None:
    """The worker's process: one answer when the way is ready, one a turn, until the pipe is closed."""
    warnings.filterwarnings("ignore", category=UserWarning)  # the baselines' own, hundreds of lines of them
    torch.set_num_threads(work.threads)
    try:
        way, peak = _start(work)
    except Unavailable as why:
        pipe.send((None, f"not run: {why}"))
        return
    except Exception as error:  # whatever another library raises: its row says so, the others go on
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
    """The way after its first steps, and their peak memory."""
    device = torch.device(work.device)
    on_gpu = device.type == "cuda"
    prepare(work.way, device)
    # What the libraries set up at their first use is nobody's: it is there before the count begins.
    WAYS["plain"](microbatch(work.net, 1, device, work.bf16)).step()
    batch = microbatch(work.net, work.draws, device, work.bf16)
    gc.collect()
    known = on_gpu or (work.way != "compiled" and PEAK_BEGINS_ANEW.exists())
    before = 0.0
    if on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated() / MIB
        torch.cuda.reset_peak_memory_stats()
    elif known:
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident_mib("VmRSS")
        PEAK_BEGINS_ANEW.write_text("5")
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
    """One way's cached blocks are not another's lack of memory."""
    if work.device == "cuda":
        torch.cuda.empty_cache()


def _wait(work: Work) -> None:
    if work.device == "cuda":
        torch.cuda.synchronize()
