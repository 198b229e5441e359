"""A command that is refused leaves the run's folder as it was, to the byte, and begins nothing where there was none."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculumdp.config.config import Config
from curriculumdp.curriculum.train import export_run
from curriculumdp.ledger.run_ledger import Ledger, RunLock
from tests.support.failing_disk import copy_folder
from tests.support.refusal import refusal_of
from tests.support.runs import finish, in_child, kill_at
from tests.support.small_run import UNITS, data_file, small

Refused = Callable[[Path, Path], Config]  # from a run's folder and its data, both of which it may damage


def contents(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    """Every name below a run's folder, with mode and bytes, but for the pid in its lock."""
    return {
        str(path.relative_to(run_dir)): (
            path.stat().st_mode,
            path.read_bytes() if path.is_file() and path.name != "lock" else b"",
        )
        for path in run_dir.rglob("*")
    }


def other_file(data: Path, **changes: Any) -> Path:
    """The data with some arrays exchanged, in a file of its own."""
    with np.load(data) as arrays:
        np.savez(data.parent / "other.npz", **({name: arrays[name] for name in arrays} | changes))
    return data.parent / "other.npz"


def other_pixels(data: Path) -> Path:
    images = np.load(data)["images"].copy()
    images[0] ^= 1
    return other_file(data, images=images)


def changed(**changes: Any) -> Refused:
    """A command with other options, one of them neutral."""
    return lambda run_dir, data: small(run_dir, data, **({"checkpoint": {"every": 5}} | changes))


def in_data(**changes: Any) -> Refused:
    """A command with other options of the data, and two neutral changes that would be written down."""

    def config(run_dir: Path, data: Path) -> Config:
        wanted = {f"data__{key}": made(data) if callable(made) else made for key, made in changes.items()}
        neutral = {"checkpoint": {"every": 5}, "logging": {"show_private_metrics": True}}
        return small(run_dir, data, **neutral, **wanted)

    return config


def damaged(damage: Callable[[Path], object]) -> Refused:
    """The same command but for neutral options, after some damage to the private folder."""

    def config(run_dir: Path, data: Path) -> Config:
        damage(run_dir / "private")
        return in_data()(run_dir, data)

    return config


def cut(file: Path, lines: int) -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:lines]))


RESUMED: dict[str, Refused] = {
    "another epsilon": changed(privacy__epsilon=2.0),
    "another clip norm": changed(private__clip_norm=0.5),
    "another seed": changed(seed=1),
    "weights that are not there": changed(init_from="/nowhere"),
    "a step that it would charge again": changed(compute__microbatch=4),
    "data that are not there": in_data(path="/nowhere.npz"),
    "a roster that is not there": in_data(roster="/nowhere.txt"),
    "other pixels": in_data(path=lambda data: str(other_pixels(data))),
    "other labels": in_data(
        path=lambda data: str(other_file(data, labels=np.roll(np.load(data)["labels"], 1)))
    ),
    "fewer images": in_data(
        path=lambda data: str(
            other_file(data, images=np.load(data)["images"][1:], labels=np.load(data)["labels"][1:])
        )
    ),
    "another number of units": in_data(units=UNITS + 1),
    "another data set's name": in_data(name="other"),
    "another place of the data set's ledger": in_data(ledger=lambda data: str(data.parent / "elsewhere")),
    "a budget that was not there": in_data(budget=4.0),
    "a secret that is gone": damaged(lambda private: (private / "secret").unlink()),
    "another run's secret": damaged(lambda private: (private / "secret").write_bytes(bytes(32))),
    "a key that is gone": damaged(lambda private: ((private / "ledger.key").unlink(), (private / "secret").unlink())),
    "a ledger that is gone": damaged(lambda private: (private / "ledger.jsonl").unlink()),
    "a ledger that was changed": damaged(lambda private: (private / "ledger.jsonl").write_bytes(b"{}\n")),
    "a ledger that was cut": damaged(lambda private: cut(private / "ledger.jsonl", 3)),
    "options that cannot be read": damaged(lambda private: (private / "config.json").write_bytes(b"{")),
    "a release beside it": damaged(lambda private: (private.parent / "release").mkdir()),
}  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of its own and a run that was killed in its last step."""
    place = tmp_path_factory.mktemp("killed")
    data = data_file(place)

    def work() -> None:
        kill_at(Ledger, "charge", 5, after=True)
        finish(small(place / "run", data))

    assert in_child(work) == -signal.SIGKILL
    return place


@pytest.mark.parametrize("kind", RESUMED)
def test_a_command_that_a_begun_run_refuses_changes_nothing_in_its_folder(
    killed: Path, tmp_path: Path, kind: str
) -> None:
    place = copy_folder(killed, tmp_path / "it")
    config = RESUMED[kind](place / "run", place / "data.npz")
    before = contents(place / "run")
    assert refusal_of(lambda: finish(config)) is not None
    assert contents(place / "run") == before


def test_a_command_that_a_held_lock_refuses_changes_nothing(killed: Path, tmp_path: Path) -> None:
    place = copy_folder(killed, tmp_path / "it")
    config = changed()(place / "run", place / "data.npz")
    before = contents(place / "run")
    with RunLock(place / "run" / "private"):
        refused = refusal_of(lambda: finish(config))
    assert "another process" in str(refused)
    assert contents(place / "run") == before


BEGUN: dict[str, Refused] = {
    "data that are not there": in_data(path="/nowhere.npz"),
    "a roster that is not there": in_data(roster="/nowhere.txt"),
    "another number of units": in_data(units=UNITS - 1),
    "images that name no units": in_data(unit="all images of one patient"),
    "a budget without room": changed(data__budget=0.4, privacy__epsilon=0.4),
    "weights that are not there": changed(init_from="/nowhere"),
    "a curriculum whose noise is coarser than its grid": changed(
        curriculum=["central", "warmup"], central__noise_multiplier=1e6
    ),
}


@pytest.mark.parametrize("kind", BEGUN)
def test_a_new_run_that_is_refused_leaves_nothing_but_its_lock(tmp_path: Path, data: Path, kind: str) -> None:
    shutil.copy(data, tmp_path / "data.npz")
    config = BEGUN[kind](tmp_path / "run", tmp_path / "data.npz")
    for _ in range(2):
        assert refusal_of(lambda: finish(config)) is not None
        left = {path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*")}
        assert left == {Path("private"), Path("private/lock")}
    assert "holds no run" in str(refusal_of(lambda: export_run(tmp_path / "run", tmp_path / "out", None)))


def options(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "private" / "config.json").read_text())


def test_what_is_accepted_is_written_down(killed: Path, tmp_path: Path) -> None:
    place = copy_folder(killed, tmp_path / "it")
    finish(changed()(place / "run", place / "data.npz"))
    assert options(place / "run")["checkpoint"]["every"] == 5


@pytest.mark.parametrize("after", [False, True])
def test_a_run_killed_as_its_ledger_begins_has_its_options(tmp_path: Path, data: Path, after: bool) -> None:
    """Without them a run that has begun could not be exported; one that has not takes others."""

    def work() -> None:
        kill_at(Ledger, "create", 1, after)
        finish(small(tmp_path / "run", data))

    assert in_child(work) == -signal.SIGKILL
    assert options(tmp_path / "run")["seed"] == small(tmp_path / "run", data).seed
    other = small(tmp_path / "run", data, seed=7)
    assert (refusal_of(lambda: finish(other)) is not None) == after


def test_a_finished_run_is_not_marked_by_a_command_that_shows_nothing(tmp_path: Path, data: Path) -> None:
    release = finish(small(tmp_path / "run", data))
    before = contents(tmp_path / "run")
    config = in_data()(tmp_path / "run", data)
    assert finish(config) == release
    assert contents(tmp_path / "run") == before
