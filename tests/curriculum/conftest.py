"""A whole run in two seconds: eight units' worth of everything, on digits."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from curriculumdp.config import Config
from curriculumdp.config import config_from
from curriculumdp.curriculum.run import run_curriculum
from curriculumdp.privacy.randomness import RunSecret
from curriculumdp.world import one_process

SECRET = bytes(range(32))


def tiny(run_dir: Path, **changes: object) -> Config:
    """A run of 3 queries, 4 warm-up steps and 6 DP-SGD steps on an 8-pixel network of 30 thousand parameters."""
    values: dict = {
        "name": "tiny",
        "run_dir": str(run_dir),
        "data": {"source": "digits", "units": 1437, "classes": 10, "channels": 1, "size": 8},
        "privacy": {"epsilon": 10.0, "delta": 1e-4},
        "model": {"channels": [8, 16], "blocks": 1},
        "central": {"sample_rate": 0.1, "noise_multiplier": 6.0, "queries": 3, "size": 8},
        "warmup": {"steps": 4, "batch": 8, "learning_rate": 1e-3, "label_dropout": 0.1},
        "private": {"steps": 6, "sample_rate": 0.02, "draws": 2, "learning_rate": 1e-3},
        "compute": {"microbatch": 8, "threads": 1, "device": "cpu"},
        "checkpoint": {"every": 2},
        "sampling": {"steps": 3, "per_class": 1},
    }
    for path, value in changes.items():
        section, _, key = path.rpartition("__")
        (values[section] if section else values)[key] = value
    return config_from(values, "tiny")


def secret() -> RunSecret:
    return RunSecret.from_bytes(SECRET)


def finish(config: Config) -> Path:
    """Runs `config` to its end in this process; the release folder."""
    outcome = run_curriculum(config, one_process(), secret=secret())
    assert outcome.release is not None
    return outcome.release


def in_child(work: Callable[[], object]) -> int:
    """The exit status of `work` done in a forked child: negative for a signal, 0 if it returned, 1 if it raised."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    _, wait = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(wait)


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, nth: int) -> None:
    """Patches `owner.name` so that its nth call (from 1) is a SIGKILL of this process."""
    calls = 0
    original = getattr(owner, name)

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
