"""launch/verify.py says what a release promises, and fails where it is not so."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_release import write_keys, write_release

COMMAND = Path(__file__).resolve().parents[2] / "launch" / "verify.py"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    private, public = write_keys(folder, "ours")
    return write_release(folder / "release", signing_key=private), public


def verify(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["verify.py", *map(str, arguments)])
    return runpy.run_path(str(COMMAND))["main"]()


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), "--help"], capture_output=True, text=True, check=True
    )
    assert "--signer" in done.stdout


def test_a_good_release_passes_from_anywhere(signed: tuple[Path, Path], tmp_path: Path) -> None:
    """As a user starts it: another process, another folder, the package found beside the command."""
    done = subprocess.run(
        [sys.executable, str(COMMAND), str(signed[0])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"verified: {signed[0]}\npromised: at most ε = 6 at δ = 0.0001 per unit")
    assert "cross-check by Opacus PRV" in done.stdout
    assert "origin not proved" in done.stdout


def test_origin_is_proved_by_a_signature(
    signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(monkeypatch, signed[0], "--signer", signed[1]) == 0
    assert f"origin: signed by {signed[1]}" in capsys.readouterr().out


def test_each_fault_is_a_line_and_the_status_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_release(tmp_path / "release")
    (folder / "samples.png").unlink()
    (folder / "extra.bin").write_bytes(b"")
    assert verify(monkeypatch, folder) == 1
    said = capsys.readouterr().out
    assert said.startswith("NOT VERIFIED: ")
    assert "WRONG: samples.png is missing" in said
    assert "WRONG: 'extra.bin' does not belong in a release" in said
    assert "promise" not in said


def test_a_runs_folder_stands_for_the_release_in_it(
    signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(monkeypatch, signed[0].parent) == 0
    assert capsys.readouterr().out.startswith(f"verified: {signed[0]}\n")


@pytest.mark.parametrize("beside", ["unet", "model_index.json", "privacy.json"])
def test_what_lies_beside_a_genuine_release_is_not_verified_by_it(
    signed: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    beside: str,
) -> None:
    """Somebody's model with a copy of a signed release inside would else be called verified and signed."""
    shutil.copytree(signed[0], tmp_path / "model" / "release")
    (tmp_path / "model" / beside).symlink_to("nowhere")
    assert verify(monkeypatch, tmp_path / "model", "--signer", signed[1]) == 1
    assert capsys.readouterr().out.startswith(f"NOT VERIFIED: {tmp_path / 'model'}\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "release").symlink_to(signed[0])
    assert verify(monkeypatch, tmp_path / "run") == 1


def test_many_problems_do_not_hide_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_release(tmp_path / "release")
    for number in range(50):
        (folder / f"verified {number}").touch()
    assert verify(monkeypatch, folder) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1] == f"NOT VERIFIED: {folder}"
    assert lines[-2] == "and 30 more"
    assert len(lines) == 23


def test_an_unusable_key_is_a_bad_input(
    signed: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        verify(monkeypatch, signed[0], "--signer", tmp_path / "none.pub")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
