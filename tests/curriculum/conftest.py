"""The sensitive set of these tests: scikit-learn's digits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from curriculumdp.curriculum import train
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.data.images import ImageSet
from curriculumdp.data.sources import load_images
from tests.support.runs import accountants_asked_once, bare_run, plan_of, tiny


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def solve_once() -> Iterator[None]:
    """The accountants' answers are kept between runs of one config: they are the slowest part of a tiny run.

    A forked child has what its parent solved: so the tiny run itself is solved here.
    """
    with accountants_asked_once():
        train.SpentSoFar(plan_of(tiny(Path("anywhere"))))
        yield


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    return load_images(source="digits", units=1437, classes=10, channels=1, size=8)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Run, State]]:
    """A Run and an untrained State as one rank of a world sees them."""
    return lambda images, world, **changes: bare_run(images, world, tiny(tmp_path / "run", **changes))
