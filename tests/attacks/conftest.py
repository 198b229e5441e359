"""A plan that needs no solving."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.small_run import data_file, without_solving


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def solved() -> Iterator[None]:
    with without_solving():
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_file(tmp_path_factory.mktemp("data"))
