"""What a launcher would hide: the exit status, kept in a file, and the error's line, told to torchrun."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from curriculumdp.command import exit_status_in, one_line_errors
from curriculumdp.errors import StoppedByMain, UserError
from tests.launch.test_train_command import ROOT


def left_with(file: Path, error: BaseException | None, status: int = 0) -> str | None:
    """What the file holds once a command has been left with `error`, or with `status`."""
    with suppress(SystemExit, RuntimeError), exit_status_in(file) as record, one_line_errors():
        if error is not None:
            raise error
        record(status)
    return file.read_text() if file.exists() else None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("bad"), "2\n"),
        (StoppedByMain("rank 0 stopped"), "2\n"),
        (KeyboardInterrupt(), "130\n"),
        (RuntimeError("a bug"), "1\n"),
        (SystemExit(7), "7\n"),
    ],
)
def test_every_way_out_is_recorded(tmp_path, error, said):
    assert left_with(tmp_path / "status", error) == said
    assert [path.name for path in tmp_path.iterdir()] == ["status"]


def test_a_good_end_and_a_preemption_are_recorded(tmp_path):
    assert left_with(tmp_path / "status", None) == "0\n"
    assert left_with(tmp_path / "status", None, 143) == "143\n"


def test_what_an_earlier_command_left_is_removed_first(tmp_path):
    (tmp_path / "status").write_text("143\n")
    with exit_status_in(tmp_path / "status"):
        assert not (tmp_path / "status").exists()


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert left_with(tmp_path / "status", UserError("bad")) is None
    (tmp_path / "status").write_text("143\n")
    assert left_with(tmp_path / "status", None) == "143\n", (
        "a process that starts late took the main one's word"
    )
    with exit_status_in(None):
        pass


def test_a_place_for_no_file_is_refused(tmp_path, capsys):
    assert left_with(tmp_path / "nowhere" / "status", None) is None
    assert "--exit-status" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    with suppress(SystemExit), exit_status_in(tmp_path / "folder"):
        raise AssertionError("went on")
    assert "--exit-status" in capsys.readouterr().err


def test_a_status_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / ".status.unfinished").mkdir()
    left_with(tmp_path / "status", UserError("bad"))
    said = capsys.readouterr().err
    assert "error: bad" in said
    assert "warning: --exit-status" in said


def test_the_line_of_an_error_is_told_to_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    left_with(tmp_path / "status", UserError("what is wrong"))
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "error: what is wrong"


def test_a_process_that_follows_the_main_one_says_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    left_with(tmp_path / "status", StoppedByMain("rank 0 stopped"))
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "error.json").exists()


@pytest.mark.slow
def test_torchruns_last_words_hold_the_line(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(ROOT / "launch" / "train.py"), "configs/digits.yaml", "private.stepz=3", f"run_dir={tmp_path}"),
        ],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert "error: " in done.stderr.split("Root Cause")[-1]
    assert "private.stepz" in done.stderr.split("Root Cause")[-1]


@pytest.mark.slow
def test_one_process_under_its_config_file_gets_no_word_of_accelerates_own(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    file = ["--config_file", "configs/accelerate/one_process.yaml"]
    done = subprocess.run(
        [*launcher, *file, "launch/train.py", "configs/digits.yaml", "private.stepz=3"],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
    )  # fmt: skip
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert "private.stepz" in line
