"""launch/compare.py prints a table over runs and writes it where asked."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.evaluated_run import write_run

COMMAND = Path(__file__).resolve().parents[2] / "launch" / "compare.py"


def compare(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare.py", *(str(part) for part in arguments)])
    return int(runpy.run_path(str(COMMAND))["main"]())


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), "--help"], capture_output=True, text=True, check=True
    )
    assert "--out" in done.stdout


def test_runs_are_printed_and_what_cannot_be_drawn_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "tiny")
    assert compare(monkeypatch, run, run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "phases", "ε", "δ", "FD", "KID", "hours"]
    assert lines[1].split() == ["tiny", "central+warmup+private", "6", "0.0001", "–", "–", "0.01"]
    assert lines[3].startswith("mean of 2 runs like tiny")
    assert "PRIVATE" in lines[4]

    with pytest.raises(SystemExit) as ended:
        compare(monkeypatch, run, "--out", tmp_path / "out")
    assert ended.value.code == 2
    assert "none of these runs was evaluated" in capsys.readouterr().err
