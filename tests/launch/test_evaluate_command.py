"""launch/evaluate.py evaluates a release from the command line, and ends a bad input in one line."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from curriculumdp.evaluation import fidelity
from tests.support.evaluated_run import CLASSES, QUICK, digits, write_npz, write_run

COMMAND = Path(__file__).resolve().parents[2] / "launch" / "evaluate.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


def evaluate(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *(str(part) for part in arguments)])
    monkeypatch.setattr(fidelity, "SMALL", QUICK)
    return int(runpy.run_path(str(COMMAND))["main"]())


def test_help_needs_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), "--help"], capture_output=True, text=True, check=True
    )
    assert "--public-real" in done.stdout


def test_a_table_is_printed_and_figures_lie_beside_the_release(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write_npz(tmp_path / "real.npz", digits("test", CLASSES))
    options = ("--real", real, "--num", 30, "--seeds", 1, "--classifiers", "logistic")
    assert evaluate(monkeypatch, run / "release", *options) == 0
    printed = capsys.readouterr().out
    record = json.loads((run / "private" / "evaluation" / "evaluation.json").read_text())
    assert f"logistic   {record['utility']['logistic']['mean'] * 100:.1f}" in printed
    assert "PRIVATE" in printed
    assert not (run / "evaluation").exists()

    assert evaluate(monkeypatch, run / "release", *options, "--public-real", "--out", tmp_path / "out") == 0
    assert "May be shared" in capsys.readouterr().out
    assert (tmp_path / "out" / "evaluation" / "utility.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--real", "mnist"), "is not a set of images"),
        (("--real", "npz:/nowhere.npz"), "/nowhere.npz: cannot be read"),
        (("--real", "digits", "--classifiers", "tree"), "choose from logistic"),
        (("--real", "digits", "--seeds", 0), "must both be at least 1"),
    ],
)
def test_a_bad_input_ends_in_one_line(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate(monkeypatch, run / "release", *options)
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert message in said[0]


def test_inception_weights_that_are_not_there_end_in_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write_npz(tmp_path / "real.npz", digits("test", CLASSES))
    with pytest.raises(SystemExit) as ended:
        evaluate(
            monkeypatch, run / "release", "--real", real, "--inception", tmp_path / "weights.safetensors"
        )
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: {tmp_path / 'weights.safetensors'}: no such file")


def test_a_folder_that_is_no_release_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, tmp_path, "--real", "digits")
    assert "has no readable privacy.json" in capsys.readouterr().err
