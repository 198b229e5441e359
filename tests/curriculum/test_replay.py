"""What was charged is replayed to the bit and charged once; the rest is drawn anew, and by two copies never twice.

With a nonce for each process, as in every real run.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest

from curriculumdp.config.config import Config
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.secret import RunSecret
from tests.support.runs import SECRET, finish, in_child, in_world, kill_at, tiny


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
    finish(tiny(tmp_path, compute__microbatch=16), accept_recharge=True)
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
        finish(tiny(tmp_path / name, **changes), accept_recharge=True)
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
