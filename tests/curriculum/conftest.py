"""The sensitive set of these tests: scikit-learn's digits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from curriculumdp.curriculum.phase import Run, State
from curriculumdp.data.images import ImageSet
from curriculumdp.data.sources import load_images
from curriculumdp.world import World
from tests.curriculum.runs import bare_run, tiny


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    return load_images(source="digits", units=1437, classes=10, channels=1, size=8)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Run, State]]:
    """A Run and an untrained State as one rank of a world sees them."""
    return lambda images, world, **changes: bare_run(images, world, tiny(tmp_path / "run", **changes))
