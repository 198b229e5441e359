"""One run, from config to release: the same command begins it, goes on with it, and says where it ended.

Order matters for privacy: the lock, then the config, the data and the plan (solved once, kept in the ledger's
first entry), then the secret, the checkpoint, the incarnation; then steps, each charged before its noise.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from curriculumdp.checkpoint import Position, load_latest, save_checkpoint
from curriculumdp.config import Config
from curriculumdp.curriculum.central import CentralPhase
from curriculumdp.curriculum.phase import FreshIncarnation, OutOfBudget, Phase, Run, State, flat_state
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.warmup import WarmupPhase, public_seed
from curriculumdp.privacy.randomness import RunSecret
from curriculumdp.world import World

PHASES: dict[str, type[Phase]] = {"central": CentralPhase, "warmup": WarmupPhase, "private": PrivatePhase}
PREEMPTED = 143  # 128 + SIGTERM: what a scheduler takes for "stopped as asked"


@dataclass(frozen=True)
class Outcome:
    """How a command ended: `release` is the folder that may leave, or None if the run was preempted."""

    run: Path
    release: Path | None
    epsilon: float

    @property
    def exit_code(self) -> int:
        return PREEMPTED if self.release is None else 0

    def summary(self) -> str:
        if self.release is None:
            return f"stopped as asked, everything saved: run the same command again to go on ({self.run})"
        return (
            f"release: {self.release}\nsamples: {self.release / 'samples.png'}\n"
            f"privacy: ε = {self.epsilon:.4g}; check it with: python launch/verify.py {self.release}"
        )


class Preempted(Exception):
    """SIGTERM came, or the launcher died: the state is saved and the process ends with 143."""


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, and that a dead launcher sets through `launcher_is_gone`."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, before)


# `accelerate launch` dies of a SIGTERM without handing it on to a single worker (measured).
LAUNCHED_BY = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None


def launcher_is_gone() -> bool:
    """True if this process was started by a launcher that no longer lives."""
    return LAUNCHED_BY is not None and os.getppid() != LAUNCHED_BY


def train(run: Run, state: State, save) -> str:
    """Runs the phases that are left from where `state` is; returns why it ended ("planned" or "budget").

    `save(state)` writes a checkpoint. Raises Preempted once everything is saved.
    """
    names = run.config.curriculum
    while state.phase < len(names):
        phase = PHASES[names[state.phase]](run)
        if state.step == 0:
            phase.begin(run, state)
        while state.step < phase.steps:
            if run.world.any(run.stopping.is_set() or launcher_is_gone()):
                phase.sync(run, state)
                save(state)
                raise Preempted
            try:
                figures = phase.step(run, state, state.step)
            except FreshIncarnation:
                run.begin_incarnation("a replayed sum differs from the recorded one")
                continue
            except OutOfBudget:
                return "budget"
            state.step += 1
            run.metrics.step(phase.name, state.step, run.epsilon_spent(), figures)
            if state.step % run.config.checkpoint.every == 0 and state.step < phase.steps:
                phase.sync(run, state)
                save(state)
        phase.sync(run, state)
        state.phase, state.step = state.phase + 1, 0
        save(state)
    return "planned"
