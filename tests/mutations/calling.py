"""Calls a test of the ordinary suite as pytest would, in this process: its fixtures by name, no collection."""

import importlib
import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def call_test(test: str, given: dict[str, Any], place: Path, fixtures: Mapping[str, Any]) -> None:
    """Runs "module:function" with `given` and whatever else it asks for; `param` in `given` is a fixture's."""
    name, _, function = test.partition(":")
    module = importlib.import_module(name)
    asked = getattr(module, function)
    request = SimpleNamespace(param=given.pop("param", None))
    made: dict[str, Any] = {**fixtures, "request": request, **given}
    asked(**{key: _fixture(key, module, place, made) for key in inspect.signature(asked).parameters})


def _fixture(name: str, module: ModuleType, place: Path, made: dict[str, Any]) -> Any:
    if name not in made:
        made[name] = _made(name, module, place, made)
    return made[name]


def _made(name: str, module: ModuleType, place: Path, made: dict[str, Any]) -> Any:
    if name == "monkeypatch":
        return pytest.MonkeyPatch()
    if name == "tmp_path":
        return Path(tempfile.mkdtemp(dir=place))
    if name == "tmp_path_factory":
        return SimpleNamespace(mktemp=lambda _: Path(tempfile.mkdtemp(dir=place)))
    owner = module
    if not hasattr(module, name):
        owner = importlib.import_module(f"{module.__name__.rpartition('.')[0]}.conftest")
    function = getattr(owner, name).__wrapped__
    wanted = inspect.signature(function).parameters
    value = function(**{key: _fixture(key, module, place, made) for key in wanted})
    return next(value) if inspect.isgenerator(value) else value
