"""One thread, as in all tests; sets and a release that many of these tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from curriculumdp.evaluation import fidelity
from curriculumdp.evaluation.fidelity import FeatureNetwork, train_features
from curriculumdp.evaluation.labelled import LabelledSet
from tests.support.evaluated_run import QUICK, digits, write_run


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def train_digits() -> LabelledSet:
    return digits("train")


@pytest.fixture(scope="session")
def test_digits() -> LabelledSet:
    return digits("test")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature networks of a second."""
    monkeypatch.setattr(fidelity, "SMALL", QUICK)


@pytest.fixture(scope="session")
def network(train_digits: LabelledSet) -> Iterator[FeatureNetwork]:
    """A feature network of digits that are in no comparison."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "SMALL", QUICK)
        yield train_features(train_digits.at_most(500), torch.device("cpu"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied by those who write into it."""
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")
