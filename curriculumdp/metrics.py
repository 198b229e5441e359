"""Progress for the operator of a run: a progress bar, JSON lines and, optionally, TensorBoard.

Phase, step and ε are public. Losses, gradient norms and realised batch sizes are computed from private rows without
noise: they go to `private/` only, and to the console only if the config says so (which the certificate then
states). The bar's timings depend on batch sizes: a side channel for anyone who watches the machine (SECURITY.md).
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from curriculumdp.privacy.event import rounded_up
from curriculumdp.time_left import TimeLeft
from curriculumdp.tracking import Trackers

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Metrics:
    """The progress bar and logs of rank 0; without a `private` folder (on other ranks) every call does nothing.

    steps: the number of steps per phase. done: how many steps of the run are already done. spent(phase, step): an upper
    bound on the ε spent once `step` steps of `phase` are done. work: images that the network sees in a step of each
    phase, by which the time of the phases ahead is guessed. trackers: what else is told, by its own rule.
    """

    def __init__(
        self,
        private: Path | None,
        steps: Mapping[str, int],
        done: int,
        spent: Callable[[str, int], float],
        show_private: bool = False,
        tensorboard: bool = False,
        work: Mapping[str, float] | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self._spent, self._show = spent, show_private
        self._stack = ExitStack()
        self._on = private is not None
        if private is None:
            return
        opened = os.open(private / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._log = self._stack.enter_context(os.fdopen(opened, "a", buffering=1))
        self._bar = self._stack.enter_context(
            tqdm(total=sum(steps.values()), initial=done, bar_format=BAR, dynamic_ncols=True, mininterval=0.5)
        )
        self._left = TimeLeft(steps, work or {})
        self._trackers = trackers
        if trackers is not None:
            self._stack.callback(trackers.close)
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an optional dependency

            self._board = SummaryWriter(private / "tensorboard")
            self._stack.callback(self._board.close)

    def step(self, phase: str, step: int, figures: Mapping[str, float]) -> None:
        """Record that `step` steps of `phase` are done; `figures` are the last one's metrics, PRIVATE."""
        if not self._on:
            return
        epsilon = self._spent(phase, step)
        self._bar.set_description_str(f"{phase:8s} ε ≤ {rounded_up(epsilon, 3)}", refresh=False)
        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._left.step(phase)
        shown = [f"{name}={value:.3g}" for name, value in known.items()] if self._show else []
        self._bar.set_postfix_str(", ".join([self._left.told(step), *shown]), refresh=False)
        self._bar.update()
        # JSON has no NaN: a value that is not finite, such as a ruined warm-up's loss, becomes null.
        logged = dict.fromkeys(figures) | known
        row = {"time": time.time(), "phase": phase, "step": step, "epsilon": epsilon, **logged}
        self._log.write(json.dumps(row, allow_nan=False) + "\n")
        if self._trackers is not None:
            self._trackers.step(phase, step, epsilon, figures)
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(f"{phase}/{name}", value, step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
