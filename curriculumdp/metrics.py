"""What a run tells its operator: a progress bar, JSON lines, optionally TensorBoard.

Phase, step and ε are public. Losses, gradient norms and realised batch sizes are computed from private rows without
noise: they go to `private/` only, and to the console only where the config shows them (which the certificate then
states). The bar's times depend on batch sizes: a side channel for whoever watches the machine (SECURITY.md).
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


class Metrics:
    """Rank 0's bar and logs; with no `private` folder (the other ranks) every call does nothing.

    `spent(phase, step)` is an upper bound on the ε spent once that many steps of that phase are done.
    """

    def __init__(
        self,
        private: Path | None,
        steps: Mapping[str, int],
        done: int,
        spent: Callable[[str, int], float],
        show_private: bool = False,
        tensorboard: bool = False,
    ) -> None:
        self._spent, self._show = spent, show_private
        self._stack = ExitStack()
        self._on = private is not None
        if private is None:
            return
        opened = os.open(private / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._log = self._stack.enter_context(os.fdopen(opened, "a", buffering=1))
        self._bar = self._stack.enter_context(
            tqdm(total=sum(steps.values()), initial=done, unit="step", dynamic_ncols=True, mininterval=0.5)
        )
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an optional dependency

            self._board = SummaryWriter(private / "tensorboard")
            self._stack.callback(self._board.close)

    def step(self, phase: str, step: int, figures: Mapping[str, float]) -> None:
        """`step` steps of `phase` are done; `figures` are PRIVATE."""
        if not self._on:
            return
        epsilon = self._spent(phase, step)
        self._bar.set_description_str(f"{phase:8s} ε ≤ {rounded_up(epsilon, 3)}", refresh=False)
        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        if self._show:
            self._bar.set_postfix(known, refresh=False)
        self._bar.update()
        # JSON has no NaN: a figure that is none, as a ruined warm-up's loss, is null.
        logged = dict.fromkeys(figures) | known
        row = {"time": time.time(), "phase": phase, "step": step, "epsilon": epsilon, **logged}
        self._log.write(json.dumps(row, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(f"{phase}/{name}", value, step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
