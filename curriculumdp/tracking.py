"""Trackers of experiments (TensorBoard, Weights & Biases, MLflow), by Accelerate's classes; rank 0 alone has any.

A tracker's rows may end on somebody else's server. They hold what is PUBLIC: phase, step, ε and learning rate, and of
the config all but paths. Losses, norms and realised batch sizes are PRIVATE, and are added only if the config says so,
which the certificate then states. What the trackers would collect on their own, such as the console, the command line
and the machine's load, which shows batch sizes, is turned off.
"""

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from curriculumdp.errors import UserError

PROJECT = "curriculumdp"
# The module that a tracker needs, which is an optional package.
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
# Rows per phase: the moments at which they arrive tell how long steps took, hence something of their batches.
ROWS = 100
QUIET_WANDB = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": PROJECT,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
# What MLflow would fill in from the command line, the machine and the working directory.
QUIET_MLFLOW = {
    "mlflow.source.name": PROJECT,
    "mlflow.source.type": "JOB",
    "mlflow.source.git.branch": "",
    "mlflow.source.git.commit": "",
    "mlflow.source.git.repoURL": "",
    "mlflow.user": PROJECT,
}


class TrackerError(UserError):
    """A tracker that cannot be used; the message is one line."""


class Trackers:
    """The trackers of a run, which get its public figures and, only with `private`, all.

    steps: the number of steps per phase, in order. rate(phase, step): the learning rate of a phase's step, None where
    it has none.
    """

    def __init__(
        self,
        trackers: Sequence[GeneralTracker],
        steps: Mapping[str, int],
        rate: Callable[[str, int], float | None],
        private: bool = False,
    ) -> None:
        self._trackers, self._steps, self._rate, self._private = list(trackers), steps, rate, private

    def step(self, phase: str, step: int, epsilon: float, figures: Mapping[str, float]) -> None:
        """Tell the trackers that `step` steps of `phase` are done, if a row is due; `figures` are PRIVATE."""
        if not self._private and step % max(1, self._steps[phase] // ROWS) and step < self._steps[phase]:
            return
        names = list(self._steps)
        row: dict[str, float] = {"phase": names.index(phase) + 1, "step": step, "epsilon": epsilon}
        if (rate := self._rate(phase, step - 1)) is not None:
            row["learning_rate"] = rate
        if self._private:
            row |= {f"{phase}/{name}": value for name, value in figures.items() if math.isfinite(value)}
        done = sum(self._steps[name] for name in names[: names.index(phase)]) + step
        self._each(lambda tracker: tracker.log(row, step=done))

    def close(self) -> None:
        """Let the trackers send what they still hold."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, do: Callable[[GeneralTracker], object]) -> None:
        """Do it to each tracker; one that fails is left out from then on, since no run should end for it."""
        for tracker in list(self._trackers):
            try:
                do(tracker)
            except Exception as error:  # whatever its library raises
                self._trackers.remove(tracker)
                print(f"warning: {tracker.name} is not told any more: {_line(error)}", file=sys.stderr)


def open_trackers(
    names: Sequence[str], run: str, folder: Path, config: Mapping[str, object]
) -> list[GeneralTracker]:
    """Start the named trackers of run `run` and tell them `config`, options by dotted key without paths. PUBLIC.

    What they keep on this machine lies in `folder`, but for MLflow, whose place is MLFLOW_TRACKING_URI. Raises
    TrackerError.
    """
    opened = []
    for name in names:
        try:
            tracker = _made(name, run, folder)
            tracker.start()
            tracker.store_init_configuration(
                {
                    key: value if isinstance(value, bool | int | float | str) else str(value)
                    for key, value in config.items()
                }
            )
        except Exception as error:  # whatever its library raises
            raise TrackerError(
                f"logging.trackers: {name} does not start ({_line(error)}): see its own documentation, or leave it out"
            ) from error
        opened.append(tracker)
    return opened


def _made(name: str, run: str, folder: Path) -> GeneralTracker:
    folder.mkdir(mode=0o700, exist_ok=True)
    if name == "tensorboard":
        return TensorBoardTracker(run, logging_dir=folder)
    if name == "wandb":
        return WandBTracker(PROJECT, name=run, dir=str(folder), settings=QUIET_WANDB)
    os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
    return MLflowTracker(PROJECT, run_name=run, tags=dict(QUIET_MLFLOW))


def missing(names: Sequence[str]) -> tuple[str, str] | None:
    """Return (tracker, why) for the first tracker whose package cannot be imported, or None."""
    for name in names:
        try:
            importlib.import_module(MODULES[name])
        except Exception as error:  # whatever a broken installation raises
            return name, _line(error)
    return None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
