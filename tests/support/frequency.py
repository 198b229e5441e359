"""A tiny run with all four phases, its plan without solving, and units that are as hostile as images can be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.config.config import Config
from curriculumdp.curriculum import plan
from curriculumdp.curriculum.plan import Plan, plan_curriculum
from curriculumdp.data.images import ImageSet
from tests.support import runs
from tests.support.runs import accountants_asked_once, tiny

NOISE = 4.0  # of DP-SGD: with the rest this comes to less than ε = 3
CHARGES = 3 + 1 + 6  # queries, the embedding, steps


def with_frequency(run_dir: Path, **changes: Any) -> Config:
    """The tiny run with an embedding after the queries, whose images the last 2 of 4 warm-up steps use."""
    values: dict[str, Any] = {
        "curriculum": ["central", "frequency", "warmup", "private"],
        "frequency": {"noise_multiplier": 8.0, "features": 20, "images": 25, "fit_steps": 3},
        "warmup__frequency_steps": 2,
    }
    return tiny(run_dir, **(values | changes))


def plan_without_solving(config: Config) -> Plan:
    """A plan of that config under NOISE; accountants are asked once for each kind of config."""
    key = config.model_dump_json(include={"curriculum", "frequency", "central", "private", "privacy", "data"})
    if key not in _plans:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "solve_noise_multiplier", lambda *_: NOISE)
            _plans[key] = plan_curriculum(config)
    return _plans[key]


_plans: dict[str, Plan] = {}


@contextmanager
def without_solving() -> Iterator[None]:
    """Within it whole runs and bare ones take their plans from `plan_without_solving`."""
    with accountants_asked_once(plan_without_solving), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "plan_of", plan_without_solving)
        yield


def hostile(channels: int = 1) -> ImageSet:
    """Units of 0 to 40 images in 3 classes: noise, then black, white, striped ones, of one class or of all."""
    rng = np.random.default_rng(1)
    counts = [1, 0, 3, 7, 40, 1, 2, 1, *rng.integers(0, 4, 80).tolist()]
    units = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    images = rng.integers(0, 256, (len(units), channels, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 3, len(units)).astype(np.int64)
    images[units == 3], labels[units == 3] = 255, 1
    images[units == 4], labels[units == 4] = 0, np.arange(40) % 3
    images[units == 6, :, ::2], labels[units == 6] = 255, 2
    return ImageSet(images, labels, units, len(counts))
