"""`accelerate launch launch/train.py CONFIG`, for real: one process and two, SIGTERM, resume, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.support.runs import tiny

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = {1: "cpu", 2: "two_cpu_processes"}


def config_file(folder: Path, **changes: object) -> Path:
    """A tiny run's config as a user's file."""
    values = tiny(folder / "run", **changes).resolved()
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return file


def command(processes: int, *arguments: object) -> list[str]:
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / "configs" / "accelerate" / f"{LAUNCHER[processes]}.yaml")),
        *(str(ROOT / "launch" / "train.py"), *map(str, arguments)),
    ]


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(processes, *arguments), capture_output=True, text=True, check=False, timeout=300, cwd=ROOT
    )


def pids_of(folder: Path) -> list[int]:
    """The workers that train in `folder`, by their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in line and b"train.py" in line and b"accelerate" not in line:
                found.append(int(entry.name))
    return found


def wait_for(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_the_launcher_saves_and_the_same_command_goes_on(tmp_path, processes):
    """The launcher of one process dies of SIGTERM without telling its worker; the worker must notice by itself."""
    config = config_file(tmp_path, warmup__steps=3000, checkpoint={"every": 100000})
    log = tmp_path / "run" / "private" / "metrics.jsonl"
    with (tmp_path / "output").open("w") as output:
        launcher = subprocess.Popen(command(processes, config), stdout=output, stderr=output, cwd=ROOT)
        try:
            wait_for(lambda: log.exists() and log.read_text().count("\n") > 10, 120, "the warm-up")
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(timeout=60)
            wait_for(lambda: not pids_of(tmp_path), 60, "the workers' end")
        finally:
            for pid in (*pids_of(tmp_path), launcher.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
    assert "run the same command again" in (tmp_path / "output").read_text()
    saved = sorted((tmp_path / "run" / "private" / "checkpoints").iterdir())[-1].name
    assert saved.startswith("1-warmup-")
    step = int(saved.rpartition("-")[2])
    assert step >= 8
    done = launch(processes, config, "privacy.epsilon=2")
    assert done.returncode != 0
    assert "privacy.epsilon" in done.stderr


def test_sigterm_to_a_worker_ends_it_with_143(tmp_path):
    config = config_file(tmp_path, warmup__steps=3000)
    log = tmp_path / "run" / "private" / "metrics.jsonl"
    with (tmp_path / "output").open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "train.py"), str(config)], stdout=output, stderr=output
        )
        try:
            wait_for(lambda: log.exists() and log.read_text().count("\n") > 10, 120, "the warm-up")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=60) == 143
        finally:
            worker.kill()


def test_two_processes_train_a_release_that_one_process_points_to(tmp_path):
    config = config_file(tmp_path)
    done = launch(2, config, "compute.processes=2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "release:" in done.stdout
    again = launch(1, config)
    assert again.returncode == 0
    assert "release:" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("privacy.epsilon=-1",), "privacy.epsilon"),
        (("private.stepz=3",), "private.stepz"),
        (("compute.processes=2",), "compute.processes"),
        (("data.units=1000",), "1000"),
        (("data.source=idx", "data.path=/nowhere"), "/nowhere"),
        (("data.size=7", "central.size=7"), "data.size"),
    ],
)
def test_a_bad_input_is_one_line_and_status_2(tmp_path, arguments, named):
    config = config_file(tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), str(config), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert named in lines[0]
    assert not (tmp_path / "run" / "release").exists()


def test_help_answers_without_loading_torch(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "launch" / "train.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "CONFIG" in done.stdout or "config" in done.stdout
    assert " torch" not in done.stderr
    assert time.monotonic() - began < 20
