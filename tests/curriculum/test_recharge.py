"""What another machine would charge again is said first, in steps and ε, and happens only where it is accepted."""

import os
import re
import signal
from pathlib import Path

import pytest

from curriculumdp.curriculum import fingerprint as fingerprints
from curriculumdp.curriculum import recharge
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.recharge import RechargeRefused
from curriculumdp.curriculum.train import run_curriculum
from curriculumdp.ledger.run_ledger import Ledger
from curriculumdp.privacy.accountant import epsilon
from curriculumdp.privacy.event import PrivacyEvent, rounded_up
from curriculumdp.privacy.secret import RunSecret
from curriculumdp.world import one_process
from tests.faults.test_refused_commands import contents
from tests.support.runs import NONCE, SECRET, finish, in_child, plan_of, tiny


def move(monkeypatch: pytest.MonkeyPatch, field: str = "torch") -> None:
    """From now on this is another machine: one fact of the fingerprint is another."""
    original = fingerprints._machine
    monkeypatch.setattr(fingerprints, "_machine", lambda device: original(device) | {field: "another"})


def spent(run_dir: Path, central: int, private: int) -> str:
    rows = {event.name: event for event in plan_of(tiny(run_dir)).events()}
    events = [
        PrivacyEvent(name, row.mechanism, row.sample_rate, row.noise_multiplier, count)
        for (name, row), count in zip(rows.items(), (central, private), strict=True)
        if count
    ]
    return rounded_up(epsilon(events, 1e-4), 4)


@pytest.mark.parametrize("field", ["torch", "processor", "environment"])
def test_a_machine_that_would_charge_a_step_again_says_what_it_costs_and_writes_nothing(
    killed, monkeypatch, field
):
    move(monkeypatch, field)
    before = contents(killed)
    with pytest.raises(RechargeRefused) as caught:
        finish(tiny(killed))
    said = str(caught.value)
    assert "\n" not in said
    assert re.search(rf"{field} was .*, is 'another'\)", said)
    assert "charging step 3 of private again" in said
    assert f"from {spent(killed, 3, 3)} to {spent(killed, 3, 4)}" in said
    assert "--accept-recharge" in said
    assert contents(killed) == before


def test_a_step_that_would_be_charged_again_is_counted_and_refused(killed, monkeypatch):
    """The same without the accountants, whose figures are another test's."""
    move(monkeypatch)
    monkeypatch.setattr(recharge, "_cost", lambda *_: "1")
    monkeypatch.setattr(recharge, "_lost", lambda *_: 0)
    with pytest.raises(RechargeRefused, match=r"charging step 3 of private again .* cost no final step"):
        finish(tiny(killed))


def test_what_is_accepted_costs_what_was_said(killed, monkeypatch, capsys):
    move(monkeypatch)
    finish(tiny(killed), accept_recharge=True)
    lost = re.search(r"end the run (\d+) of its 6 private steps early", capsys.readouterr().out)
    assert lost is not None
    ledger = Ledger.read(killed / "private")
    assert {event.name: event.count for event in ledger.events()}["private"] == 6 + 1 - int(lost[1])
    assert ledger.sealed == "budget"


def test_a_run_that_saved_its_last_step_goes_on_elsewhere_unasked(tmp_path, monkeypatch):
    original = PrivatePhase.step

    def stopped() -> None:
        def step(self, run, state, number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, run, state, number)

        PrivatePhase.step = step
        outcome = run_curriculum(
            tiny(tmp_path), one_process(), secret=RunSecret.from_bytes(SECRET), nonce=NONCE
        )
        raise SystemExit(outcome.exit_code)

    assert in_child(stopped) == 143
    move(monkeypatch)
    finish(tiny(tmp_path))
    ledger = Ledger.read(tmp_path / "private")
    assert ledger.incarnation == 1
    assert {event.name: event.count for event in ledger.events()}["private"] == 6


def test_the_same_machine_is_never_asked_after_a_kill(killed):
    finish(tiny(killed))
    assert Ledger.read(killed / "private").incarnation == 0


def test_a_sum_that_differs_though_nothing_known_has_changed_is_said_and_not_refused(
    killed, capsys, monkeypatch
):
    original = PrivatePhase.clipped_sum

    def other_arithmetic(self, run, state, step, rows):
        total, figures = original(self, run, state, step, rows)
        return (total + 1 if step == 2 and run.ledger.incarnation == 0 else total), figures

    monkeypatch.setattr(PrivatePhase, "clipped_sum", other_arithmetic)
    finish(tiny(killed))
    said = capsys.readouterr().out
    assert "warning: a replayed sum is not the recorded one" in said
    assert f"from {spent(killed, 3, 3)} to {spent(killed, 3, 4)}" in said
