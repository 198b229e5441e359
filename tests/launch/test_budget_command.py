"""launch/budget.py makes a data set's ledger once, shows what runs have taken of it, and errs in one line."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "launch" / "budget.py"


def budget(monkeypatch: pytest.MonkeyPatch, state: Path, *more: str) -> int:
    config = str(ROOT / "configs" / "digits.yaml")
    named = ["data.name=wards", f"data.ledger={state}", *more]
    monkeypatch.setattr(sys, "argv", ["budget.py", config, *named])
    return runpy.run_path(str(COMMAND))["main"]()


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), "--help"], capture_output=True, text=True, check=True
    )
    assert "--create" in done.stdout


def test_a_ledger_is_made_once_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    assert budget(monkeypatch, state, "data.budget=50", "--create") == 0
    made = f"no earlier run on 'wards' is recorded in {state}: created a new ledger with data.budget = 50"
    assert capsys.readouterr().out.startswith(made)
    assert budget(monkeypatch, state, "--create", "data.budget=50") == 0
    assert "already exists" in capsys.readouterr().out
    assert budget(monkeypatch, state, "data.budget=50") == 0
    *_, left, room = capsys.readouterr().out.splitlines()
    assert "100.00%" in left
    assert "about" not in left
    assert room.startswith("a new run of this config (privacy.epsilon = 10) takes ")
    assert room.endswith("% and fits")


def test_the_epsilon_that_a_full_budget_names_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digits' plan at ε = 8 takes more than all of a budget of 8.5, under which a Gaussian would fit."""
    state = tmp_path / "state"
    plan = ["data.budget=8.5", "privacy.epsilon=8"]
    budget(monkeypatch, state, *plan, "--create")
    budget(monkeypatch, state, *plan)
    refused = capsys.readouterr().out.splitlines()[-1]
    assert "is refused: " in refused
    named = refused.split("set privacy.epsilon to ")[1].split(",")[0]
    assert float(named) < 8
    budget(monkeypatch, state, plan[0], f"privacy.epsilon={named}")
    assert capsys.readouterr().out.splitlines()[-1].endswith("% and fits")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["data.budget=50"], "--create"),
        (["data.name=null", "data.ledger=null", "--create"], "data.name is missing"),
        (["data.ledger=state", "--create"], "absolute path"),
    ],
)
def test_refusals_end_in_one_line_and_make_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        budget(monkeypatch, tmp_path / "state", *more)
    assert stopped.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ")
    assert reason in complaint
    assert complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
