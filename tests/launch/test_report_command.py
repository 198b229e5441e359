"""launch/report.py writes both editions and says where they are."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.evaluated_run import write_run

COMMAND = Path(__file__).resolve().parents[2] / "launch" / "report.py"


def report(monkeypatch: pytest.MonkeyPatch, run: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["report.py", str(run)])
    return int(runpy.run_path(str(COMMAND))["main"]())


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), "--help"], capture_output=True, text=True, check=True
    )
    assert "report_public.html" in done.stdout


def test_both_editions_are_written_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "tiny")
    assert report(monkeypatch, run) == 0
    public, private = (Path(line) for line in capsys.readouterr().out.splitlines())
    assert public == run / "report_public.html"
    assert private == run / "private" / "report.html"
    assert "Public edition" in public.read_text()
    assert "Private edition" in private.read_text()


def test_a_run_that_is_not_finished_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        report(monkeypatch, tmp_path)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} has no release yet")
