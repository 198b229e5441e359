"""What a run's trackers are told of it: its options without paths, and the learning rate of each step. PUBLIC."""

from collections.abc import Mapping
from pathlib import Path

from curriculumdp.config.changes import flattened, without_paths
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.tracking import Trackers, open_trackers


def tracked(run: Run, steps: Mapping[str, int], folder: Path) -> Trackers:
    """Start the trackers that the config names and tell them its options; raise TrackerError.

    steps: the number of steps per phase. folder: for what they keep on this machine.
    """
    config, logging = run.config, run.config.logging
    opened = open_trackers(logging.trackers, config.name, folder, flattened(without_paths(config)))
    private = PrivatePhase(run) if "private" in config.curriculum else None

    def rate(phase: str, step: int) -> float | None:
        if private is not None and phase == private.name:
            return private.learning_rate(step)
        return config.warmup.learning_rate if phase == "warmup" and config.warmup is not None else None

    return Trackers(opened, steps, rate, logging.track_private_metrics)
