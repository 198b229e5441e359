"""What the planted faults need once: the data, a solved plan, and the table at the end."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from curriculumdp import export
from curriculumdp.curriculum import folder, run
from curriculumdp.data.sources import load_images
from tests.curriculum.runs import finish, plan_of, tiny

ROWS = pytest.StashKey[list[tuple[str, str, float]]]()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Any]]:
    """Fixtures that forked children share; what accountants take seconds for is answered before they fork."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "plan_curriculum", plan_of)
        patch.setattr(run, "SpentSoFar", lambda _: lambda *_: 0.0)
        patch.setattr(export, "account", lru_cache(export.account))
        finish(tiny(tmp_path_factory.mktemp("clean"), private__clip_norm=0.5))
        digits = load_images(source="digits", units=1437, classes=10, channels=1, size=8)
        yield {"digits": digits, "solve_once": None}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> list[tuple[str, str, float]]:
    return request.config.stash.setdefault(ROWS, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table of faults: what was planted, which test caught it, in how many seconds."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    width = max(len(name) for name, _, _ in rows)
    terminalreporter.section("planted privacy faults")
    for name, caught_by, seconds in rows:
        terminalreporter.write_line(f"{name:<{width}}  {seconds:5.2f} s  {caught_by}")
    survivors = sum(caught_by.startswith("SURVIVED") for _, caught_by, _ in rows)
    terminalreporter.write_line(
        f"{len(rows)} faults, {len(rows) - survivors} caught, {survivors} survived, "
        f"{sum(seconds for _, _, seconds in rows):.1f} s"
    )
