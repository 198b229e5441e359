"""Peak memory of a step: what it adds to the network and the samples."""

import ctypes
import multiprocessing
import re
from pathlib import Path

import torch

from bench.step_nets import NETS, microbatch
from bench.step_ways import WAYS

MIB = 2**20
STEPS = 3


def peak_mib(way: str, net: str, draws: int, device: torch.device, bf16: bool) -> float | None:
    """MiB that `way` adds at its peak over three steps; None where that cannot be told apart.

    On a CPU that is resident memory, in a process of its own: another way's freed blocks would hide there. The
    compiler's own memory would stand in the compiled step's, which is left out there.
    """
    if device.type == "cuda":
        return _peak_on_gpu(way, net, draws, bf16)
    if way == "compiled" or not Path("/proc/self/clear_refs").exists():
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_on_cpu, (way, net, draws, torch.get_num_threads()))


def _peak_on_gpu(way: str, net: str, draws: int, bf16: bool) -> float:
    batch = microbatch(NETS[net], draws, torch.device("cuda"), bf16)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = WAYS[way](batch).step
    for _ in range(STEPS):
        step()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _peak_on_cpu(way: str, net: str, draws: int, threads: int) -> float:
    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    # What the libraries set up at their first use is nobody's: it is there before the count begins.
    WAYS["plain"](microbatch(NETS[net], 1, cpu, False)).step()
    batch = microbatch(NETS[net], draws, cpu, False)
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step = WAYS[way](batch).step
    for _ in range(STEPS):
        step()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
