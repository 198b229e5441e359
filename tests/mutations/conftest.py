"""What the planted faults need once: the data and a solved plan."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from curriculumdp.curriculum import folder, train
from curriculumdp.data.sources import load_images
from curriculumdp.release import export
from tests.support.runs import finish, plan_of, tiny


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Any]]:
    """Fixtures that forked children share; what accountants take seconds for is answered before they fork."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "plan_curriculum", plan_of)
        patch.setattr(train, "SpentSoFar", lambda _: lambda *_: 0.0)
        patch.setattr(export, "account", lru_cache(export.account))
        finish(tiny(tmp_path_factory.mktemp("clean"), private__clip_norm=0.5))
        digits = load_images(source="digits", units=1437, classes=10, channels=1, size=8)
        yield {"digits": digits, "solve_once": None}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")
