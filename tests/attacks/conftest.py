"""A line at the end that says how many attacks were tried; a plan that needs no solving."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.small_run import data_file, without_solving
from tests.tried import tell


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tell(terminalreporter, "attacks")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="package", autouse=True)
def solved() -> Iterator[None]:
    with without_solving():
        yield


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_file(tmp_path_factory.mktemp("data"))
