"""launch/prepare.py makes a published set into the file that a config names, and errs in one line."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_published import celeba

COMMAND = Path(__file__).resolve().parents[2] / "launch" / "prepare.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    return runpy.run_path(str(COMMAND))["main"]()


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", COMMAND, "--help"], capture_output=True, text=True, check=True
    )
    assert "--out" in done.stdout


def test_a_set_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data" / "celeba32.npz"
    assert run(monkeypatch, "celeba", celeba(tmp_path / "celeba"), "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: 4 images of 32x32 pixels; set data.units=4\n"
    with np.load(out) as arrays:
        assert arrays["images"].shape == (4, 32, 32, 3)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["celeba", "absent", "--out", "a.npz"], "absent: no such folder"),
        (["celeba", ".", "--out", "a.npz", "--size", "0"], "--size must be between"),
        (["mnist", ".", "--out", "a.npz"], "invalid choice"),
    ],
)
def test_a_bad_argument_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert part in said
    assert list(tmp_path.iterdir()) == []
