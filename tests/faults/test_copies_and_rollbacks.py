"""Kills at random calls, in one and two processes, with copies and rollbacks of the run folder mixed in.

Nothing here is mirrored, so that copies and rollbacks go unnoticed; each process has a nonce of its own, and half of
them sum otherwise than the fingerprint tells. Whoever sees all that every copy ever gave out must find:

- no rows under two noises: that would be one subsampled event with half the noise, charged as two;
- no noise key on two sums: their difference would be a record;
- nothing given out that the folder's ledger does not count.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from curriculumdp import checkpoint
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.config.config import Config
from curriculumdp.curriculum import private, run, train
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.event import PrivacyEvent
from curriculumdp.world import World, one_process
from tests.support.runs import finish, in_child, in_world, kill_at
from tests.support.small_run import _digest, ledger_lines, small
from tests.support.tried import TRIED

SEED = 11
REFUSED = 3
MOMENTS: list[tuple[object, str, bool]] = [
    *((Ledger, "charge", after) for after in (False, True)),
    *((Ledger, "begin", after) for after in (False, True)),
    *((private, "add_noise", after) for after in (False, True)),
    (PerUnitGradients, "backward", False),
    (checkpoint, "save_file", False),
    *((checkpoint, "sync", after) for after in (False, True)),
    (Ledger, "seal", True),
    (train, "publish", False),
]


@dataclass
class Folder:
    """A run folder. `since`: how many lines its processes had written when its ledger was last set back."""

    path: Path
    since: int = 0
    snapshots: list[Path] = field(default_factory=list)


class Family:
    """A run folder, its copies, and what was seen of all of them."""

    def __init__(self, place: Path, data: Path, rng: random.Random) -> None:
        self.place, self.data, self.rng = place, data, rng
        place.mkdir()
        self.folders = [Folder(place / "0")]
        self.names = 1

    def config(self, folder: Folder) -> Config:
        compute = {"microbatch": 2, "threads": 1, "device": "cpu"}
        config = small(folder.path, self.data, compute=compute, checkpoint__every=2)
        unnamed = config.data.model_copy(update={"name": None, "ledger": None})
        return config.model_copy(update={"data": unnamed})

    def unfinished(self) -> list[Folder]:
        return [folder for folder in self.folders if not (folder.path / "release").exists()]

    def seen(self, folder: Folder) -> list[dict[str, str]]:
        path = folder.path.with_name(folder.path.name + ".seen")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def copy(self, folder: Folder) -> None:
        made = Folder(self.place / str(self.names))
        self.names += 1
        shutil.copytree(folder.path, made.path)
        self.folders.append(made)

    def keep(self, folder: Folder) -> None:
        """A backup of the private folder, which a rollback may bring back."""
        kept = self.place / f"kept-{self.names}"
        self.names += 1
        shutil.copytree(folder.path / "private", kept)
        folder.snapshots.append(kept)

    def roll_back(self, folder: Folder) -> None:
        shutil.rmtree(folder.path / "private")
        shutil.copytree(self.rng.choice(folder.snapshots), folder.path / "private")
        shutil.rmtree(folder.path / "release", ignore_errors=True)
        folder.since = len(self.seen(folder))

    def resume(self, folder: Folder, kill: bool) -> list[int]:
        """The exit statuses of one or two processes that train, one of them to be killed at a random call."""
        size, (owner, name, after) = self.rng.choice([1, 1, 1, 2]), self.rng.choice(MOMENTS)
        doomed, nth = self.rng.randrange(size), self.rng.choice([1, 1, 1, 2, 2, 3])
        other_arithmetic = self.rng.random() < 0.5

        def work(world: World) -> None:
            torch.set_num_threads(1)
            if other_arithmetic:
                sum_otherwise(self.rng.randrange(1, 2**20))
            watch(folder.path)
            if kill and world.rank == doomed:
                kill_at(owner, name, nth, after)
            try:
                finish(self.config(folder), world, nonce=None)
            except ValueError as error:
                if not type(error).__module__.startswith("curriculumdp"):
                    raise
                print(error)
                os._exit(REFUSED)

        return [in_child(lambda: work(one_process()))] if size == 1 else in_world(size, work)

    def check(self) -> None:
        lines = [line for folder in self.folders for line in self.seen(folder)]
        for one, other in (("rows", "noise"), ("noise", "sum")):
            pairs = {(line[one], line[other]) for line in lines}
            assert len({first for first, _ in pairs}) == len(pairs), f"equal {one} met two different {other}"
        for folder in self.folders:
            if (folder.path / "private" / "ledger.jsonl").exists():
                given = {line["noise"] for line in self.seen(folder)[folder.since :]}
                charged = [line for line in ledger_lines(folder.path) if line["kind"] == "charge"]
                assert len(charged) >= len(given), f"{len(given)} given out, {len(charged)} charged"


def watch(run_dir: Path) -> None:
    """Write down what this process is given keys for: from then on the noisy sum counts as seen."""
    original = run.Run.charge

    def watched(self: run.Run, event: PrivacyEvent, step: int, clip_norm: float, total: Tensor) -> bytes:
        key = original(self, event, step, clip_norm, total)
        line = {
            "rows": _digest(self.rows_key(event.name, step)),
            "noise": _digest(key),
            "sum": _digest(total.cpu().numpy().tobytes()),
        }
        descriptor = os.open(
            run_dir.with_name(run_dir.name + ".seen"), os.O_WRONLY | os.O_APPEND | os.O_CREAT
        )
        os.write(descriptor, (json.dumps(line) + "\n").encode())
        os.close(descriptor)
        return key

    run.Run.charge = watched  # type: ignore[method-assign]


def sum_otherwise(salt: int) -> None:
    """Sums of this process differ from another's, as another processor's may, and no fingerprint tells."""
    original = PrivatePhase.clipped_sum

    def other(self: PrivatePhase, *args: Any) -> tuple[Tensor, dict[str, float]]:
        total, figures = original(self, *args)
        total[salt % len(total)] += 1 + salt % 3
        return total, figures

    PrivatePhase.clipped_sum = other  # type: ignore[method-assign]


def kills_in(place: Path, data: Path, rng: random.Random, stop: Callable[[int], bool]) -> int:
    """Run families until `stop` says so of the number of kills; return that number."""
    kills = families = 0
    while not stop(kills):
        family = Family(place / f"family-{families}", data, rng)
        families += 1
        while unfinished := family.unfinished():
            folder = rng.choice(unfinished)
            statuses = family.resume(folder, kill=rng.random() < 0.95)
            assert set(statuses) <= {0, 1, REFUSED, -signal.SIGKILL, -signal.SIGABRT}, statuses
            if 1 in statuses:
                assert -signal.SIGKILL in statuses, "a process failed beside none that was killed"
            if statuses.count(REFUSED) == len(statuses):
                raise AssertionError("a run that was only killed, copied or rolled back was refused")
            kills += statuses.count(-signal.SIGKILL)
            family.check()
            begun = (folder.path / "private" / "ledger.key").exists()
            if begun and rng.random() < 0.3:
                family.keep(folder)
            if begun and len(family.folders) < 4 and rng.random() < 0.25:
                family.copy(folder)
                TRIED["faults copies of a run folder"] += 1
            if folder.snapshots and rng.random() < 0.15:
                family.roll_back(folder)
                TRIED["faults rollbacks of a run folder"] += 1
            if stop(kills):
                break
        shutil.rmtree(family.place)
    TRIED["faults SIGKILLs among copies"] += kills
    return kills


def test_kills_copies_and_rollbacks_put_no_rows_under_two_noises(tmp_path: Path, data: Path) -> None:
    assert kills_in(tmp_path, data, random.Random(SEED), lambda kills: kills >= 3) >= 3


@pytest.mark.slow
def test_many_kills_with_copies_and_rollbacks_put_no_rows_under_two_noises(
    tmp_path: Path, data: Path
) -> None:
    """As many as the variable KILLS says, by default 20; for 200, which take half an hour, also pass --timeout 0."""
    wanted = int(os.environ.get("KILLS", "20"))
    assert kills_in(tmp_path, data, random.Random(SEED + 1), lambda kills: kills >= wanted) >= wanted
