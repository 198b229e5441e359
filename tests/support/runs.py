"""A whole run in two seconds, and what tests do with it: kill it, go on with it, look at one step of it."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import pytest

from curriculumdp.config.config import Config, config_from
from curriculumdp.curriculum import folder, train
from curriculumdp.curriculum.initial import initial_state
from curriculumdp.curriculum.plan import Plan, plan_curriculum
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.curriculum.train import run_curriculum
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.release import export
from curriculumdp.world import World, one_process, open_world

SECRET = bytes(range(32))
NONCE = "5e" * 32  # of every process in tests where the runs must be equal to the bit


def tiny(run_dir: Path, **changes: object) -> Config:
    """A run of 3 queries, 4 warm-up steps and 6 DP-SGD steps on an 8-pixel network."""
    values: dict = {
        "name": "tiny",
        "run_dir": str(run_dir),
        "data": {"source": "digits", "units": 1437, "classes": 10, "channels": 1, "size": 8},
        "privacy": {"epsilon": 3.0, "delta": 1e-4},
        "model": {"channels": [8, 16], "blocks": 1},
        "central": {"sample_rate": 0.1, "noise_multiplier": 6.0, "queries": 3, "size": 8, "count_weight": 0},
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


def plan_of(config: Config) -> Plan:
    """The plan of a config, solved once for all configs that cost the same: the slowest part of a tiny run."""
    central, warmup, private = config.central, config.warmup, config.private
    looked_at = (
        *(config.curriculum, config.privacy, config.data.units, warmup and warmup.steps),
        central and (central.sample_rate, central.noise_multiplier, central.queries),
        config.frequency and config.frequency.noise_multiplier,
        *(private.sample_rate, private.steps),
    )
    if looked_at not in _plans:
        _plans[looked_at] = plan_curriculum(config)
    return _plans[looked_at]


_plans: dict[tuple[object, ...], Plan] = {}


# For the whole session: asking takes a second.
_spent = lru_cache(train.SpentSoFar)
_account = lru_cache(export.account)


@contextmanager
def accountants_asked_once(plan: Callable[[Config], Plan] = plan_of) -> Iterator[None]:
    """Within it runs take their plan from `plan`, and ask accountants once for each question."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(folder, "plan_curriculum", plan)
        patched.setattr(train, "SpentSoFar", _spent)
        patched.setattr(export, "account", _account)
        yield


def bare_run(images: ImageSet, world: World, config: Config, secret: bytes = SECRET) -> tuple[Run, State]:
    """A Run and an untrained State as one rank sees them, without ledger, folder or collectives."""
    made = Run(
        config=config,
        plan=plan_of(config),
        world=world,
        secret=RunSecret.from_bytes(secret),
        images=images,
    )
    return made, initial_state(config, world.device)


def finish(
    config: Config, world: World | None = None, nonce: str | None = NONCE, accept_recharge: bool = False
) -> Path:
    """Run `config` to its end in this process, under the tests' one secret and nonce; return the release folder."""
    secret = RunSecret.from_bytes(SECRET)
    outcome = run_curriculum(
        config, world or one_process(), accept_recharge=accept_recharge, secret=secret, nonce=nonce
    )
    assert outcome.release is not None
    return outcome.release


def in_child(work: Callable[[], object]) -> int:
    """The exit status of `work` done in a forked child: negative for a signal, 0 if it returned, 1 if it raised."""
    child = os.fork()
    if child == 0:
        _exit_with(work)
    return _status_of(child)


def _status_of(child: int) -> int:
    """How `child` ended; it is not left behind where this process is told to wait no longer."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise


def _exit_with(work: Callable[[], object]) -> NoReturn:
    """Ends this (forked) process with the status that `work` comes to, without the parent's clean-up."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def kill_at(owner: object, name: str, nth: int, after: bool = False) -> None:
    """Patches `owner.name` so that its nth call (from 1) is a SIGKILL of this process; for use in a child."""
    calls = 0
    original = getattr(owner, name)

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def in_world(size: int, work: Callable[[World], object]) -> list[int]:
    """The exit statuses of `size` forked gloo processes that each did `work` as one rank of one world."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ.update(
                {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
            )
            _exit_with(lambda: _work_in(size, work))
        children.append(child)
    return [_status_of(child) for child in children]


def _work_in(size: int, work: Callable[[World], object]) -> None:
    with open_world("cpu", size) as world:
        work(world)


def outcome_of(release: Path) -> dict[str, bytes]:
    """What two runs must have in common: weights, certificate, the images that training saw, the ledger's events."""
    lines = (release.parent / "private" / "ledger.jsonl").read_bytes().splitlines()
    return {
        "weights": (release / "unet" / "diffusion_pytorch_model.safetensors").read_bytes(),
        "certificate": (release / "privacy.json").read_bytes(),
        "central": (release / "central.png").read_bytes(),
        "frequency": picture.read_bytes() if (picture := release / "frequency.png").exists() else b"",
        "ledger": b"\n".join(lines),
    }
