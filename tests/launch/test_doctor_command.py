"""launch/doctor.py prints a line per check and exits with 2 if one failed."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from curriculumdp.curriculum import doctor
from curriculumdp.curriculum.doctor import Finding

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "launch" / "doctor.py"
CONFIG = ROOT / "configs" / "digits.yaml"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*found: Finding, words: tuple[str, ...] = ()) -> int:
        def examine(config: object, show_private: bool) -> tuple[Finding, ...]:
            return (*found, Finding("ok", "shown", str(show_private)))

        monkeypatch.setattr(doctor, "examine", examine)
        monkeypatch.setattr(sys, "argv", ["doctor.py", str(CONFIG), *words])
        return runpy.run_path(str(COMMAND))["main"]()

    return run


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("FAILED", 2)])
def test_only_a_failed_check_is_in_the_exit_status(told, capsys, status, code) -> None:
    assert told(Finding(status, "disk", "run launch/plan.py \x1b[2J")) == code
    line, shown = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{status:8}disk: run ")
    assert "\x1b" not in line
    assert shown.endswith("False")


def test_counts_are_shown_only_with_the_option(told, capsys) -> None:
    assert told(words=("--show-private-metrics",)) == 0
    assert "shown: True" in capsys.readouterr().out


def test_for_real_data_that_do_not_fit_are_one_line_and_the_other_checks_go_on(tmp_path: Path) -> None:
    options = ["data.units=1400", f"run_dir={tmp_path / 'run'}", "private.draws=1", "compute.microbatch=2"]
    done = subprocess.run(
        [sys.executable, COMMAND, CONFIG, *options], capture_output=True, text=True, check=False, timeout=200
    )
    assert (done.returncode, done.stderr) == (2, "")
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FAILED")] == ["data:"]
    assert {"gradients:", "repeats:", "speed:", "memory:", "disk:"} <= {line.split()[1] for line in lines}
    assert not list(tmp_path.iterdir())


def test_an_invalid_config_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, COMMAND, CONFIG, "data.unit=1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
