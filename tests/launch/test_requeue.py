"""The batch script of Slurm jobs, with stand-ins for srun and scontrol: a preempted run is requeued, no other is."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_train_command import config_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "configs" / "slurm" / "requeue.sbatch"
# The step is a process group of its own, which gets SIGTERM once the run has begun, as by --signal=TERM@90.
SRUN = """#!/bin/bash
setsid "$@" & pid=$!
( while [ "$(cat "$WATCH" 2>/dev/null | wc -l)" -lt 12 ]; do sleep 0.1; kill -0 $pid || exit; done
  kill -TERM -- -$pid ) 2>/dev/null &
wait $pid
status=$?
# Slurm kills what a task leaves behind.
kill -KILL -- -$pid 2>/dev/null
exit $status
"""
LAUNCHERS = {
    "no launcher": "",
    "accelerate, one process": "-m accelerate.commands.launch --config_file configs/accelerate/one_process.yaml",
    "accelerate, two": "-m accelerate.commands.launch --config_file configs/accelerate/two_cpu_processes.yaml",
    "torchrun, one": "-m torch.distributed.run --standalone --nproc-per-node 1",
    "torchrun, two": "-m torch.distributed.run --standalone --nproc-per-node 2",
}
TWO = "accelerate, two"


def job(place: Path, launcher: str, *arguments: object) -> Path:
    """The shipped script with another launcher and another run."""
    text = SCRIPT.read_text()
    command = re.search(
        r"^  \.venv/bin/accelerate launch .*?(?= --exit-status)", text, re.MULTILINE | re.DOTALL
    )
    assert command is not None
    mine = " ".join([sys.executable, LAUNCHERS[launcher], "launch/train.py", *map(str, arguments)])
    file = place / "job.sh"
    file.write_text(text.replace(command[0], f"  {mine}"))
    return file


def submitted(place: Path, script: Path) -> subprocess.CompletedProcess[str]:
    """The job run to its end in a checkout, `place`, by machinery that says what it is asked to requeue."""
    programs = place / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/bash\necho "SCONTROL $*"\n'}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("launch", "curriculumdp", "kernels", "configs"):
        if not (place / name).exists():
            (place / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "42",
        "SLURM_CPUS_PER_TASK": "2",
        "WATCH": str(place / "run" / "private" / "metrics.jsonl"),
    }
    return subprocess.run(
        ["bash", str(script)],
        capture_output=True, text=True, check=False, timeout=300, cwd=place, env=environment,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_preempted_run_has_saved_and_its_job_is_requeued(tmp_path, launcher):
    config = config_file(tmp_path, warmup__steps=3000, checkpoint={"every": 100000})
    done = submitted(tmp_path, job(tmp_path, launcher, config))
    assert "SCONTROL requeue 42" in done.stdout, done.stderr[-2000:]
    assert done.returncode == 143
    saved = sorted((tmp_path / "run" / "private" / "checkpoints").iterdir())[-1].name
    assert saved.startswith("1-warmup-")
    assert not list(tmp_path.glob("exit-status*"))


@pytest.mark.parametrize("launcher", ["no launcher", pytest.param(TWO, marks=pytest.mark.slow)])
def test_a_refused_run_is_not_requeued(tmp_path, launcher):
    config = config_file(tmp_path)
    done = submitted(tmp_path, job(tmp_path, launcher, config, "privacy.epsilon=-1"))
    assert "SCONTROL" not in done.stdout
    assert done.returncode == 2
    assert "privacy.epsilon" in done.stderr


def test_the_script_gives_each_of_its_workers_more_than_one_processor():
    text = SCRIPT.read_text()
    asked = re.search(r"^#SBATCH --cpus-per-task=(\d+)$", text, re.MULTILINE)
    workers = re.search(r"compute\.processes=(\d+)", text)
    assert asked is not None
    assert workers is not None
    assert int(asked[1]) >= 2 * int(workers[1])
    assert shutil.which("bash")
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
