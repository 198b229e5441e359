"""The sensitive set of these tests: scikit-learn's digits."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from curriculumdp.curriculum import train
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.data.images import ImageSet
from curriculumdp.data.sources import load_images
from tests.support.refused import killed_run
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


@pytest.fixture(scope="session")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    with accountants_asked_once():
        killed_run(run_dir)
    return run_dir


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """The folder of a killed run, a copy: it is in its third DP-SGD step, with a checkpoint after the second."""
    return Path(shutil.copytree(killed_once, tmp_path / "run"))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Run, State]]:
    """A Run and an untrained State as one rank of a world sees them."""
    return lambda images, world, **changes: bare_run(images, world, tiny(tmp_path / "run", **changes))
