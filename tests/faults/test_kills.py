"""Real signals at random moments, to one process and to one of several: nothing lost, nothing charged less."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.command import INTERRUPTED, one_line_errors
from curriculumdp.config.config import Config
from curriculumdp.curriculum import private, run
from curriculumdp.curriculum.train import PREEMPTED, run_curriculum
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import World, one_process
from tests.support.runs import NONCE, SECRET, finish, in_child, in_world, kill_at, outcome_of
from tests.support.small_run import Observer, small
from tests.support.tried import TRIED

SEED = 3


def interrupted(run_dir: Path, data: Path, observer: Observer, delay: float, kind: signal.Signals) -> int:
    """The exit status of a child that trains and gets a signal after `delay` seconds."""

    def work() -> None:
        pid = os.getpid()
        threading.Thread(target=lambda: (time.sleep(delay), os.kill(pid, kind)), daemon=True).start()
        with one_line_errors(), observer.watching(run_dir):
            outcome = run_curriculum(
                small(run_dir, data), one_process(), secret=RunSecret.from_bytes(SECRET), nonce=NONCE
            )
        raise SystemExit(outcome.exit_code)

    return in_child(work)


def one_run_under_fire(
    place: Path, data: Path, undisturbed: dict[str, bytes], rng: random.Random, seconds: float
) -> int:
    """Sends random signals until the run is through; the number of those that ended a process."""
    place.mkdir()
    run_dir, observer = place / "run", Observer(place / "seen")
    ended = 0
    for _ in range(60):
        kind = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        status = interrupted(run_dir, data, observer, rng.uniform(0, seconds), kind)
        # A SIGTERM before the run listens ends it as any program, a SIGINT outside its commands with a traceback.
        allowed = (INTERRUPTED, 1) if kind == signal.SIGINT else (PREEMPTED, -kind)
        assert status in (0, *allowed), status
        if status:
            ended += 1
            TRIED[f"faults {kind.name}s"] += 1
        if status == 0:
            break
    with observer.watching(run_dir):
        release = finish(small(run_dir, data))
    observer.check(run_dir)
    assert outcome_of(release) == undisturbed
    return ended


def time_of_a_run(place: Path, data: Path) -> float:
    begun = time.monotonic()
    assert in_child(lambda: finish(small(place / "timed" / "run", data))) == 0
    return time.monotonic() - begun


def test_signals_at_random_moments_change_nothing(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes]
) -> None:
    seconds = time_of_a_run(tmp_path, data)
    one_run_under_fire(tmp_path / "a", data, undisturbed, random.Random(SEED), seconds)


@pytest.mark.slow
def test_many_signals_at_random_moments_change_nothing(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes]
) -> None:
    seconds, rng, ended = time_of_a_run(tmp_path, data), random.Random(SEED + 1), 0
    for number in range(40):
        ended += one_run_under_fire(tmp_path / f"{number}", data, undisturbed, rng, seconds)
        if ended >= 40:
            break
    assert ended >= 20, f"only {ended} signals ended a process"


def killed_rank(rank: int, owner: Any, name: str, nth: int, after: bool = False) -> Any:
    def work(world: World) -> None:
        if world.rank == rank:
            kill_at(owner, name, nth, after)

    return work


DEATHS = {
    "rank 1 before the first sum": killed_rank(1, World, "sum_", 1),
    "rank 1 inside a step": killed_rank(1, PerUnitGradients, "backward", 2),
    "rank 1 with the noise's key, its noise not drawn": killed_rank(1, run.Run, "charge", 4, after=True),
    "rank 1 with the noise drawn": killed_rank(1, private, "add_noise", 2, after=True),
    "rank 0 while it charges": killed_rank(0, Ledger, "charge", 3),
    "rank 0 charged, the verdict not told": killed_rank(0, Ledger, "charge", 4, after=True),
    "rank 0 before it seals": killed_rank(0, Ledger, "seal", 1),
}


def shared(run_dir: Path, data: Path) -> Config:
    """A small run with microbatches for two ranks."""
    return small(run_dir, data, compute={"microbatch": 2, "threads": 1, "device": "cpu"})


@pytest.fixture(scope="module")
def undisturbed_pair(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, bytes]:
    return outcome_of(finish(shared(tmp_path_factory.mktemp("pair") / "run", data)))


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on(
    tmp_path: Path, data: Path, undisturbed_pair: dict[str, bytes], death: str
) -> None:
    run_dir, observer = tmp_path / "run", Observer(tmp_path / "seen")

    def work(world: World) -> None:
        torch.set_num_threads(1)
        DEATHS[death](world)
        with observer.watching(run_dir):
            finish(shared(run_dir, data), world)

    statuses = in_world(2, work)
    assert -signal.SIGKILL in statuses, "nobody was killed"
    assert 0 not in statuses, "a rank went on alone"
    TRIED["faults ranks killed"] += 1
    with observer.watching(run_dir):
        finish(shared(run_dir, data))
    observer.check(run_dir)
    assert outcome_of(run_dir / "release") == undisturbed_pair
