"""A signed release to be spoiled, and an accountant that is asked once for each question."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curriculumdp.release import verify
from curriculumdp.release.certificate import account
from tests.support.tiny_release import write_keys, write_release


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a signed release, its signer's public key)."""
    folder = tmp_path_factory.mktemp("run")
    private, public = write_keys(folder, "ours")
    return write_release(folder / "release", signing_key=private), public


@pytest.fixture(scope="session")
def once() -> Callable[..., Any]:
    return functools.cache(account)


@pytest.fixture
def release(
    original: tuple[Path, Path], once: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy to be spoiled. Equal events are accounted once for the whole session: it takes two seconds."""
    monkeypatch.setattr(verify, "account", once)
    return Path(shutil.copytree(original[0], tmp_path / "release"))
