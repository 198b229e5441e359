"""The time and memory of DP-SGD on this machine, measured on dummy images: `launch/plan.py --estimate`. PUBLIC."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from statistics import median

import numpy as np
import torch

from curriculumdp.config.config import Config
from curriculumdp.curriculum.initial import initial_state
from curriculumdp.curriculum.plan import Plan
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.data.images import ImageSet
from curriculumdp.durations import duration
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import World

GIB = 2**30


# Microbatches that are timed: up to MOST, but past LEAST only within SECONDS.
LEAST, MOST, SECONDS = 3, 9, 60.0


@dataclass(frozen=True)
class Estimate:
    """step_seconds: (least, median, most) of one step of the expected size on one process; timed: from how many.

    memory: this process's peak bytes so far.
    """

    device: str
    step_seconds: tuple[float, float, float]
    timed: int
    steps: int
    memory: int

    @property
    def seconds(self) -> float:
        """Return the seconds of all DP-SGD steps on one process; the central queries and the warm-up are extra."""
        return self.step_seconds[1] * self.steps

    def __str__(self) -> str:
        least, middle, most = map(duration, self.step_seconds)
        return (
            f"on one process of this machine ({self.device}): about {middle} per step ({least} to {most}), "
            f"{duration(self.seconds)} for {self.steps} steps of DP-SGD, {self.memory / GIB:.2g} GiB at peak "
            f"(median and spread of {self.timed} microbatches of dummy images; central queries, warm-up and images not "
            "counted)"
        )


def estimate(
    config: Config,
    plan: Plan,
    say: Callable[[str], object] = lambda text: None,
    seconds: float | None = None,
) -> Estimate:
    """Measure the seconds and memory of DP-SGD with the real step's code on dummy images, in some microbatches' time.

    The first microbatch, which builds and compiles, is not timed; several more and one update are. `say` is told how
    far it is; past LEAST microbatches it stops after `seconds` (default: SECONDS). Raises NetworkError and PlanError;
    KeyError for a plan without DP-SGD.
    """
    seconds = SECONDS if seconds is None else seconds
    torch.set_num_threads(config.compute.threads)
    on_gpu = config.compute.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    run = Run(config, plan, World(0, 1, device), RunSecret.create(), _dummy_images(config))
    state = initial_state(config, device)
    phase = PrivatePhase(run)
    rows = np.arange(config.compute.microbatch)
    say(f"estimate: the first microbatch of {len(rows)} units × {config.private.draws} draws, not timed …")
    total, _ = phase.clipped_sum(run, state, 0, rows)
    times: list[float] = []
    while len(times) < LEAST or (len(times) < MOST and sum(times) < seconds):
        started = time.perf_counter()
        total, seen = phase.clipped_sum(run, state, 1 + len(times), rows)
        phase.figures(run, rows, seen)  # waits for the GPU
        times.append(time.perf_counter() - started)
        say(f"estimate: microbatch {len(times)} took {duration(times[-1])}")
    started = time.perf_counter()
    phase.update(state, 0, total, bytes(32))
    if on_gpu:
        torch.cuda.synchronize()
    update = time.perf_counter() - started
    microbatches = ceil(phase.expected_units / config.compute.microbatch)
    least, middle, most = (microbatches * part + update for part in (min(times), median(times), max(times)))
    memory = torch.cuda.max_memory_allocated() if on_gpu else _peak_of_process()
    return Estimate(device.type, (least, middle, most), len(times), config.private.steps, memory)


def _dummy_images(config: Config) -> ImageSet:
    """Return a microbatch of units with one grey image each."""
    data, count = config.data, config.compute.microbatch
    pixels = np.full((count, data.channels, data.size, data.size), 128, dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % data.classes
    return ImageSet(pixels, labels, np.arange(count, dtype=np.int64), count)


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
