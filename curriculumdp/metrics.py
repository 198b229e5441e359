"""What a run tells its operator: a progress bar, JSON lines, optionally TensorBoard.

Phase, step, ε and time are public. Losses, gradient norms and realised batch sizes are computed from private
rows without noise: they go to `private/` only, and to the console only where the config shows them (which the
certificate then states).
"""

import json
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm


class Metrics:
    """Rank 0's bar and logs; on other ranks every call does nothing."""

    def __init__(self, private: Path | None, total_steps: int, done: int, show_private: bool, tensorboard: bool):
        self.private, self.show_private = private, show_private
        self.log = None
        self.board = None
        self.bar = None
        self.steps_logged = done
        if private is None:
            return
        self.log = (private / "metrics.jsonl").open("a", buffering=1)
        self.bar = tqdm(total=total_steps, initial=done, unit="step", dynamic_ncols=True, mininterval=0.5)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional dependency

            self.board = SummaryWriter(private / "tensorboard")

    def step(self, phase: str, step: int, epsilon: float, figures: dict[str, float]) -> None:
        """One step is done: `epsilon` is an upper bound on what is spent, `figures` are PRIVATE."""
        self.steps_logged += 1
        if self.bar is None or self.log is None:
            return
        self.bar.set_description(f"{phase:8s} ε ≤ {epsilon:.3g}")
        if self.show_private:
            self.bar.set_postfix(figures)
        self.bar.update()
        row = {"time": time.time(), "phase": phase, "step": step, "epsilon": epsilon, **figures}
        self.log.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(f"{phase}/{name}", value, step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for open_thing in (self.bar, self.log, self.board):
            if open_thing is not None:
                open_thing.close()
