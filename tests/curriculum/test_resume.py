"""Killed anywhere and run again: the weights of the run that was never killed, charged once.

Equal to the bit under one nonce, which tests alone can set; test_replay.py is about a nonce for each process.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from curriculumdp import checkpoint
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.curriculum import folder, private, run, train
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.warmup import WarmupPhase
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.release.export import ExportError
from curriculumdp.world import one_process
from tests.support.runs import NONCE, SECRET, finish, in_child, in_world, kill_at, outcome_of, tiny

# Each process first does a step of each phase on made images, which counts where it is counted.
MOMENTS: dict[str, Callable[[], None]] = {
    "before the ledger's first entry": lambda: kill_at(Ledger, "create", 1),
    "after the ledger's first entry": lambda: kill_at(Ledger, "create", 1, after=True),
    "inside a central query": lambda: kill_at(train.CentralPhase, "step", 2),
    "a central query is charged, its noise not drawn": lambda: kill_at(Ledger, "charge", 2, after=True),
    "inside the warm-up": lambda: kill_at(WarmupPhase, "step", 5),
    "between phases": lambda: kill_at(PrivatePhase, "begin", 2),
    "inside a DP-SGD step": lambda: kill_at(PerUnitGradients, "backward", 7),
    "a step is summed, not charged": lambda: kill_at(Ledger, "charge", 5),
    "a step is charged, its noise not drawn": lambda: kill_at(Ledger, "charge", 6, after=True),
    "noise is drawn, weights not updated": lambda: kill_at(private, "add_noise", 4, after=True),
    "a checkpoint's tensors are half written": lambda: kill_at(checkpoint, "save_file", 4),
    "a checkpoint is written, not renamed": lambda: kill_at(checkpoint, "sync", 15),
    "all is trained, nothing sealed": lambda: kill_at(Ledger, "seal", 1),
    "sealed, the secret not erased": lambda: kill_at(folder, "erase_private", 1),
    "sealed, not released": lambda: kill_at(train, "publish", 1),
    "released": lambda: kill_at(train, "publish", 1, after=True),
}


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory, solve_once: None) -> dict[str, bytes]:
    return outcome_of(finish(tiny(tmp_path_factory.mktemp("never killed"))))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_is_the_run_never_killed(tmp_path, never_killed, moment):
    config = tiny(tmp_path)

    def killed() -> None:
        MOMENTS[moment]()
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    resumed = outcome_of(finish(config))
    assert resumed == never_killed, f"differs: {[k for k in resumed if resumed[k] != never_killed[k]]}"


def test_killed_at_every_step_of_dp_sgd_is_charged_once(tmp_path, never_killed):
    config = tiny(tmp_path)

    def killed() -> None:
        kill_at(run.Run, "charge", 3, after=True)
        finish(config)

    kills = 0
    while in_child(killed) == -signal.SIGKILL:
        kills += 1
        assert kills < 30, "no progress"
    assert kills >= 3
    assert outcome_of(tmp_path / "release") == never_killed


def test_a_finished_run_is_pointed_to_and_not_touched(tmp_path, never_killed):
    config = tiny(tmp_path)
    finish(config)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "release").rglob("*")}
    finish(config)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "release").rglob("*")} == before
    assert not (tmp_path / "private" / "secret").exists()


def test_the_secret_is_erased_before_anything_is_published(tmp_path, monkeypatch):
    """Nothing is drawn after the seal: a publication that fails, or takes long, must not keep the secret alive."""
    original, secret = train.publish, tmp_path / "private" / "secret"

    def checked(out: Path, *args: object, **kwargs: object) -> Path:
        assert not secret.exists()
        return original(out, *args, **kwargs)

    monkeypatch.setattr(train, "publish", checked)
    finish(tiny(tmp_path))
    assert not secret.exists()


@pytest.mark.parametrize("command", ["train", "train another config", "export"])
def test_a_kill_between_seal_and_erasure_is_made_up_for_by_the_next_command_first(
    tmp_path, monkeypatch, command
):
    def killed() -> None:
        kill_at(folder, "erase_private", 1)
        finish(tiny(tmp_path / "run"))

    assert in_child(killed) == -signal.SIGKILL
    assert (tmp_path / "run" / "private" / "secret").exists()

    def full_disk(*_: object, **__: object) -> None:
        raise ExportError("no space")

    monkeypatch.setattr(train, "publish", full_disk)
    changes = {"privacy__epsilon": 2.0} if "another" in command else {}
    work = (
        (lambda: train.export_run(tmp_path / "run", tmp_path / "out", None))
        if command == "export"
        else (lambda: finish(tiny(tmp_path / "run", **changes)))
    )
    with pytest.raises(ValueError, match="epsilon" if changes else "no space"):
        work()
    assert not (tmp_path / "run" / "private" / "secret").exists()


def test_metrics_that_a_killed_leg_has_shown_are_certified_whatever_later_legs_do(tmp_path):
    """The mark is on disk before the first figure is shown."""

    def killed() -> None:
        kill_at(train.CentralPhase, "begin", 1)
        finish(tiny(tmp_path, logging={"show_private_metrics": True}))

    assert in_child(killed) == -signal.SIGKILL
    release = finish(tiny(tmp_path))
    assert json.loads((release / "privacy.json").read_text())["guarantee"]["private_metrics_shown"]


def test_resumed_on_another_number_of_processes_is_the_same_run(tmp_path, never_killed):
    config = tiny(tmp_path)

    def killed() -> None:
        kill_at(Ledger, "charge", 6, after=True)
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    assert in_world(2, lambda world: finish(config, world)) == [0, 0]
    assert outcome_of(tmp_path / "release") == never_killed


def test_one_rank_killed_ends_the_others_and_the_run_goes_on_alone(tmp_path, never_killed):
    config = tiny(tmp_path)

    def work(world) -> None:
        if world.rank == 1:
            kill_at(PerUnitGradients, "backward", 3)
        finish(config, world)

    first, second = in_world(2, work)
    assert second == -signal.SIGKILL
    assert first != 0
    finish(config)
    assert outcome_of(tmp_path / "release") == never_killed


@pytest.mark.parametrize("worlds", [2, 3])
def test_more_processes_give_the_same_weights_and_ledger_to_the_bit(tmp_path, never_killed, worlds):
    config = tiny(tmp_path)
    assert in_world(worlds, lambda world: finish(config, world)) == [0] * worlds
    assert outcome_of(tmp_path / "release") == never_killed


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, never_killed):
    config = tiny(tmp_path)
    original = PrivatePhase.step

    def interrupted() -> None:
        def step(self, run, state, number):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, run, state, number)

        PrivatePhase.step = step
        outcome = train.run_curriculum(
            config, one_process(), secret=RunSecret.from_bytes(SECRET), nonce=NONCE
        )
        raise SystemExit(outcome.exit_code)

    assert in_child(interrupted) == 143
    newest = sorted(p.name for p in (tmp_path / "private" / "checkpoints").iterdir())[-1]
    assert newest == "2-private-0000004", "the step that was under way is finished and saved"
    finish(config)
    assert outcome_of(tmp_path / "release") == never_killed
