"""What the tests of a data set's ledger share."""

from pathlib import Path

import pytest

from tests.support.dataset import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
