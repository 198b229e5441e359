"""The time and memory of DP-SGD on this machine, measured on dummy images: `launch/plan.py --estimate`. PUBLIC."""

import resource
import time
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch

from curriculumdp.config.config import Config
from curriculumdp.curriculum.plan import Plan
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.train import initial_state
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import World

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """step_seconds: of one step of the expected size on one process; memory: this process's peak bytes so far."""

    device: str
    step_seconds: float
    steps: int
    memory: int

    @property
    def hours(self) -> float:
        """Return the hours of all DP-SGD steps on one process; the central queries and the warm-up are extra."""
        return self.step_seconds * self.steps / 3600

    def __str__(self) -> str:
        unit = "GPU-hours" if self.device != "cpu" else "hours"
        return (
            f"on one process of this machine ({self.device}): about {self.step_seconds:.3g} s per step, "
            f"{self.hours:.3g} {unit} for {self.steps} steps of DP-SGD, {self.memory / GIB:.2g} GiB at peak "
            "(timed on one microbatch of dummy images; central queries, warm-up and images not counted)"
        )


def estimate(config: Config, plan: Plan) -> Estimate:
    """Measure the seconds and memory of DP-SGD with the real step's code on dummy images, in a few microbatches' time.

    The second of two microbatches and one update are timed. Raises NetworkError and PlanError; KeyError for a plan
    without DP-SGD.
    """
    torch.set_num_threads(config.compute.threads)
    on_gpu = config.compute.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    run = Run(config, plan, World(0, 1, device), RunSecret.create(), _dummy_images(config))
    state = initial_state(config, device)
    phase = PrivatePhase(run)
    rows = np.arange(config.compute.microbatch)
    total, _ = phase.clipped_sum(run, state, 0, rows)
    started = time.perf_counter()
    total, seen = phase.clipped_sum(run, state, 1, rows)
    phase.figures(run, rows, seen)  # waits for the GPU
    summed = time.perf_counter()
    phase.update(state, 0, total, bytes(32))
    if on_gpu:
        torch.cuda.synchronize()
    updated = time.perf_counter()
    microbatches = ceil(phase.expected_units / config.compute.microbatch)
    memory = torch.cuda.max_memory_allocated() if on_gpu else _peak_of_process()
    return Estimate(
        device.type, microbatches * (summed - started) + updated - summed, config.private.steps, memory
    )


def _dummy_images(config: Config) -> ImageSet:
    """Return a microbatch of units with one grey image each."""
    data, count = config.data, config.compute.microbatch
    pixels = np.full((count, data.channels, data.size, data.size), 128, dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % data.classes
    return ImageSet(pixels, labels, np.arange(count, dtype=np.int64), count)


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
