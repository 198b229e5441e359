"""Killed before any change of any file, or half-way in it, or the power cut: the same run again is the same run.

A process that is killed leaves the disk as it was at that moment, and nothing else. So one run is watched and
its folder copied before each of its changes; each copy is what a kill there would leave, and is gone on with.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.failing_disk import Disk, Operation, copy_folder
from tests.support.runs import finish, outcome_of
from tests.support.small_run import EVENTS, Observer, ledger_lines, small
from tests.support.tried import TRIED

SEED = 1


@dataclass(frozen=True)
class Left:
    """What a fault before `operation` leaves in `folder`, and the noisy sums that were seen by then."""

    fault: str
    operation: str
    folder: Path
    seen: list[dict[str, str]]

    def __str__(self) -> str:
        return f"{self.fault} at {self.operation}"


def content_of(folder: Path) -> str:
    """A digest of all names, modes and bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_mode}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, data: Path, undisturbed: dict[str, bytes]) -> list[Left]:
    """Every state that a kill, a torn write or a power cut can leave of a small run; equal ones once."""
    place = tmp_path_factory.mktemp("states")
    watched = place / "watched"
    watched.mkdir()
    observer, rng = Observer(place / "seen"), random.Random(SEED)
    states: list[Left] = []
    known: set[tuple[str, int]] = set()

    def keep(fault: str, operation: Operation, make: Callable[[Path], object]) -> None:
        folder = place / f"{len(states)}"
        make(folder)
        seen = observer.lines()
        fact = content_of(folder), len(seen)
        if fact in known:
            shutil.rmtree(folder)
        else:
            known.add(fact)
            states.append(Left(fault, str(operation), folder, seen))

    def before(operation: Operation) -> None:
        keep("killed", operation, lambda folder: copy_folder(watched, folder))
        keep("power cut", operation, disk.durable.write)
        if operation.content() != b"":
            inside = operation.path.relative_to(watched)

            def tear(folder: Path) -> None:
                copy_folder(watched, folder)
                operation.tear(folder / inside, rng.random())

            keep("torn", operation, tear)

    disk = Disk(watched, before)
    with disk, observer.watching(watched / "run"):
        finish(small(watched / "run", data))
    assert outcome_of(watched / "run" / "release") == undisturbed, "the watching itself changes the run"
    assert len(observer.lines()) == EVENTS, "the observer does not see all"
    TRIED["faults operations watched"] += disk.number
    return states


def go_on(state: Left, data: Path, undisturbed: dict[str, bytes]) -> None:
    """Runs the same command on what was left; it must come to what the undisturbed run came to."""
    TRIED[f"faults {state.fault}"] += 1
    run_dir = state.folder / "run"
    observer = Observer(state.folder / "seen")
    with observer.watching(run_dir):
        release = finish(small(run_dir, data))
    observer.check(run_dir, state.seen)
    outcome = outcome_of(release)
    assert outcome == undisturbed, f"differs: {[k for k in outcome if outcome[k] != undisturbed[k]]}"
    assert not (run_dir / "private" / "secret").exists()
    assert sorted(p.name for p in run_dir.iterdir()) == ["private", "release"], "leftovers"


def test_a_sample_of_crashes_changes_nothing(
    left: list[Left], data: Path, undisturbed: dict[str, bytes]
) -> None:
    rng = random.Random(SEED)
    for fault in ("killed", "torn", "power cut"):
        for state in rng.sample([state for state in left if state.fault == fault], 2):
            go_on(state, data, undisturbed)


@pytest.mark.slow
def test_no_crash_anywhere_changes_anything(
    left: list[Left], data: Path, undisturbed: dict[str, bytes]
) -> None:
    failed = []
    for state in left:
        if (state.folder / "seen").exists():  # the sample's
            continue
        try:
            go_on(state, data, undisturbed)
        except Exception as error:
            failed.append(f"{state}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


def go_on_otherwise(state: Left, data: Path) -> None:
    """Another microbatch size after the fault: new keys, what is done again is charged again, ε stays in budget."""
    TRIED["faults followed by another fingerprint"] += 1
    folder = copy_folder(state.folder, state.folder.with_name(f"{state.folder.name}-otherwise"))
    run_dir, observer = folder / "run", Observer(folder / "seen")
    config = small(run_dir, data, compute={"microbatch": 4, "threads": 1, "device": "cpu"})
    with observer.watching(run_dir):
        release = finish(config, accept_recharge=True)
    observer.check(run_dir, state.seen)
    certified = json.loads((release / "privacy.json").read_text())
    charged = [line for line in ledger_lines(run_dir) if line["kind"] == "charge"]
    assert sum(row["count"] for row in certified["guarantee"]["events"]) == len(charged)
    assert certified["accounting"]["epsilon_of_events"] <= config.privacy.epsilon


@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_crash_followed_by_another_fingerprint_is_charged_in_full(
    left: list[Left], data: Path, count: int
) -> None:
    rng = random.Random(SEED + count)
    begun = [state for state in left if state.seen and "seal" not in str(state) and len(state.seen) < EVENTS]
    for state in rng.sample(begun, min(count, len(begun))):
        if (
            not (state.folder / "seen").exists()
            and not state.folder.with_name(f"{state.folder.name}-otherwise").exists()
        ):
            go_on_otherwise(state, data)
