"""Killed anywhere and run again: the weights of the run that was never killed, charged once.

Equal to the bit under one nonce, which tests alone can set. With a nonce for each process, as in every real run, what
was charged is replayed to the bit and charged once, and the rest is drawn anew.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from curriculumdp import checkpoint
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.config.config import Config
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


pytestmark = pytest.mark.usefixtures("solve_once")


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


def entries(run_dir: Path) -> list[dict]:
    lines = (run_dir / "private" / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line)["body"] for line in lines]


def incarnations(run_dir: Path) -> list[dict]:
    return [body for body in entries(run_dir) if body["kind"] == "incarnation"]


def events(run_dir: Path) -> list[dict]:
    return [body for body in entries(run_dir) if body["kind"] == "charge"]


def test_another_microbatch_size_takes_new_keys_and_charges_what_is_done_again(tmp_path):
    """Killed one step after a checkpoint: that step is charged twice, under other rows, and the plan stops short."""
    config = tiny(tmp_path)

    def killed() -> None:
        kill_at(Ledger, "charge", 6, after=True)
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    before = events(tmp_path)
    assert [(r["phase"], r["step"]) for r in before][-1] == ("private", 2)
    finish(tiny(tmp_path, compute__microbatch=16))
    assert [i["number"] for i in incarnations(tmp_path)] == [0, 1]
    assert "microbatch" in incarnations(tmp_path)[1]["why"]
    after = events(tmp_path)
    assert after[: len(before)] == before
    assert after[len(before)]["incarnation"] == 1
    assert (after[len(before)]["phase"], after[len(before)]["step"]) == ("private", 2)
    assert after[len(before)]["sum_mac"] != before[-1]["sum_mac"]
    certificate = json.loads((tmp_path / "release" / "privacy.json").read_text())
    counts = {r["name"]: r["count"] for r in certificate["guarantee"]["events"]}
    assert counts["private"] == len([r for r in after if r["phase"] == "private"])
    assert certificate["accounting"]["epsilon_of_events"] <= config.privacy.epsilon
    assert certificate["guarantee"]["stopped"] == ("planned" if counts["private"] == 7 else "budget")


def test_a_replayed_sum_that_differs_is_thrown_away_and_charged_anew(tmp_path, monkeypatch):
    """The fingerprint is a hint; the recorded digest is the guard (design D1)."""
    config = tiny(tmp_path)

    def killed() -> None:
        kill_at(Ledger, "charge", 6, after=True)
        finish(config)

    assert in_child(killed) == -signal.SIGKILL
    original = PrivatePhase.clipped_sum

    def other_arithmetic(self, run, state, step, rows):
        total, figures = original(self, run, state, step, rows)
        return (total + 1 if step == 2 and run.ledger.incarnation == 0 else total), figures

    monkeypatch.setattr(PrivatePhase, "clipped_sum", other_arithmetic)
    finish(config)
    assert [i["number"] for i in incarnations(tmp_path)] == [0, 1]
    again = [r for r in events(tmp_path) if (r["phase"], r["step"]) == ("private", 2)]
    assert [r["incarnation"] for r in again] == [0, 1]


def killed_at_charge(config: Config, nth: int) -> None:
    """Run `config` in a child that dies once its nth charge is on disk; every process has a nonce of its own."""

    def killed() -> None:
        kill_at(Ledger, "charge", nth, after=True)
        finish(config, nonce=None)

    assert in_child(killed) == -signal.SIGKILL


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """(purpose, key) of each key of rows, draws and noise that this process derives from the run's secret."""
    seen: list[tuple[str, bytes]] = []
    original = RunSecret.key

    def watched(self: RunSecret, purpose: str, **context: int | float | str) -> bytes:
        key = original(self, purpose, **context)
        if purpose in ("rows", "draws", "noise") and bytes(self._held) == SECRET:
            seen.append((purpose, key))
        return key

    monkeypatch.setattr(RunSecret, "key", watched)
    return seen


def test_what_was_charged_is_replayed_to_the_bit_and_the_rest_is_drawn_anew(tmp_path, keys):
    """Killed with two steps charged after the last checkpoint: both are replayed, no step is charged twice."""
    config = tiny(tmp_path, checkpoint__every=4)
    finish(tiny(tmp_path / "never killed"))
    whole = events(tmp_path / "never killed")
    killed_at_charge(config, 5)  # three queries, steps 0 and 1; the last checkpoint is the warm-up's
    before = events(tmp_path)
    keys.clear()
    finish(config, nonce=None)
    after = events(tmp_path)
    assert after[: len(before)] == before
    steps = [(row["phase"], row["step"]) for row in whole]
    assert [(row["phase"], row["step"]) for row in after] == steps, "a step was charged twice"
    assert not {row["sum_mac"] for row in after} & {row["sum_mac"] for row in whole}
    assert len(incarnations(tmp_path)) == 1
    draws = {key for purpose, key in keys if purpose == "draws"}
    assert len(draws) == 2, "replayed steps draw under the nonce of then, the others under this process's"


@pytest.mark.parametrize("arithmetic", ["equal", "other"])
@pytest.mark.parametrize("worlds", [1, 2])
def test_two_copies_of_a_run_share_what_was_charged_and_not_one_row_more(
    tmp_path, monkeypatch, keys, arithmetic, worlds
):
    """Their fingerprints are equal: under other sums, equal rows under two noises would cost more than both say.

    Which library computes a sum, or which instructions it chooses, no fingerprint can know for certain.
    """
    killed_at_charge(tiny(tmp_path / "a"), 6)  # three queries, steps 0 to 2; the last checkpoint is at step 2
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    charged = len(events(tmp_path / "a"))
    seen = []
    original = PrivatePhase.clipped_sum

    def other_arithmetic(self, run, state, step, rows):
        total, figures = original(self, run, state, step, rows)
        return (total + 1 if step > 2 and run.config.run_dir.endswith("b") else total), figures

    if arithmetic == "other":
        monkeypatch.setattr(PrivatePhase, "clipped_sum", other_arithmetic)
    for name in ("a", "b"):
        keys.clear()
        config = tiny(tmp_path / name)
        if worlds == 1:
            finish(config, nonce=None)
        else:
            assert in_world(worlds, lambda world, c=config: finish(c, world, nonce=None)) == [0] * worlds
        seen.append({purpose: {key for kind, key in keys if kind == purpose} for purpose, _ in keys})
    one, two = (events(tmp_path / name) for name in ("a", "b"))
    assert one[:charged] == two[:charged]
    assert len(one) == len(two) == 9
    new = [{row["sum_mac"] for row in rows[charged:]} for rows in (one, two)]
    assert not new[0] & new[1]
    assert len(incarnations(tmp_path / "a")) == len(incarnations(tmp_path / "b")) == 1
    if worlds == 1:
        for purpose, shared in (("rows", 1), ("draws", 1), ("noise", 1)):  # step 2, replayed by both
            assert len(seen[0][purpose] & seen[1][purpose]) == shared, purpose
            assert len(seen[0][purpose]) > shared


def test_two_copies_that_begin_another_incarnation_each_share_no_key_even_under_one_nonce(tmp_path, keys):
    """Each ledger knows of one new incarnation: its number would tell them apart no more than its step."""

    def killed() -> None:
        kill_at(Ledger, "charge", 6, after=True)
        finish(tiny(tmp_path / "a"))

    assert in_child(killed) == -signal.SIGKILL
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    seen = []
    for name, changes in (
        ("a", {"compute__microbatch": 16}),
        ("b", {"compute__memory_format": "channels_last"}),
    ):
        keys.clear()
        finish(tiny(tmp_path / name, **changes))
        seen.append(set(keys))
    assert [i["number"] for i in incarnations(tmp_path / "a") + incarnations(tmp_path / "b")] == [0, 1, 0, 1]
    assert len(seen[0]) > 4
    assert not seen[0] & seen[1]


def test_every_process_has_a_nonce_of_its_own_whatever_the_seed(tmp_path):
    config = tiny(tmp_path)
    for _ in range(2):
        killed_at_charge(config, 5)
        # charges of a replay are calls too, so that each process gets no farther than its checkpoint
    nonces = [body["nonce"] for body in entries(tmp_path) if body["kind"] == "start"]
    assert len(set(nonces)) == len(nonces) >= 2
    assert all(len(bytes.fromhex(nonce)) == 32 for nonce in nonces)


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
