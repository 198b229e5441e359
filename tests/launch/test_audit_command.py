"""launch/audit.py audits a config from the command line, and ends a bad input in one line."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "launch" / "audit.py"
SMALL = ["curriculum=[private]", "central=null", "warmup=null", "model.channels=[8,16]", "model.attention=[]"]
SMALL += ["private.draws=1", "compute.threads=1"]


def audit(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    command = [str(part) for part in (COMMAND, ROOT / "configs" / "digits.yaml", *arguments)]
    monkeypatch.setattr(sys, "argv", command)
    return int(runpy.run_path(str(COMMAND))["main"]())


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), "--help"], capture_output=True, text=True, check=True
    )
    assert "never its proof" in done.stdout
    assert "--with-data" in done.stdout


def test_an_audit_prints_its_findings_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--canaries", 30, "--runs", 2, "--steps", 2, "--out", tmp_path, *SMALL)
    assert audit(monkeypatch, *options) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record["audits"]["one_run"]["count"] == 30
    assert record["audits"]["many_runs"]["count"] == 2
    assert record["certificate"]["audited"]["count"] == 2
    assert all(line in printed for line in record["in_words"])
    assert (tmp_path / "audit" / "audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--canaries", 0, "--runs", 0), "at least one canary or one run"),
        (("--canaries", 100000, "--runs", 0), "100000 canaries"),
        (("privacy.epsilon=-1",), "privacy.epsilon"),
    ],
)
def test_a_bad_input_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        audit(monkeypatch, *options, *SMALL)
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert said[-1].startswith("error: ")
    assert message in said[-1]
