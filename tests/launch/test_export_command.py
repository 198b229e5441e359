"""launch/export.py hands its arguments on, and a bad input ends in one line."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from curriculumdp.release.export import ExportError

COMMAND = Path(__file__).resolve().parents[2] / "launch" / "export.py"


def export(monkeypatch: pytest.MonkeyPatch, work: Callable[..., Path], *arguments: str) -> int:
    for module, name, function in (("train", "export_run", work), ("ending", "ending", lambda _: [])):
        stand_in = ModuleType(f"curriculumdp.curriculum.{module}")
        setattr(stand_in, name, function)
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    return runpy.run_path(str(COMMAND))["main"]()


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), "--help"], capture_output=True, text=True, check=True
    )
    assert "--sign" in done.stdout


def test_arguments_are_handed_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []

    def work(run: Path, out: Path, sign: Path | None, *, end_run: bool, license_: str | None) -> Path:
        seen.append((run, out, sign, end_run, license_))
        return out

    assert export(monkeypatch, work, "runs/a", "--out", "there", "--sign", "key.pem") == 0
    assert export(monkeypatch, work, "runs/a", "--out", "there", "--end-run", "--license", "mit") == 0
    assert seen == [
        (Path("runs/a"), Path("there"), Path("key.pem"), False, None),
        (Path("runs/a"), Path("there"), None, True, "mit"),
    ]
    assert "release: there" in capsys.readouterr().out


def test_refusals_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(run: Path, out: Path, sign: Path | None, *, end_run: bool, license_: str | None) -> Path:
        raise ExportError(f"{run} is no run")

    with pytest.raises(SystemExit) as stopped:
        export(monkeypatch, work, "nothing", "--out", "there")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: nothing is no run\n"
