"""Signals outside training: heeded at once, even inside a library's call, with a status and without a traceback."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.test_train_command import ROOT, command, config_file

# pbkdf2 stays in C for minutes: no Python handler would run before it returns.
BUSY = """
import hashlib, sys
from pathlib import Path
from curriculumdp.command import exit_status_in, one_line_errors
from curriculumdp.curriculum.preemption import heed_signals
with exit_status_in(Path(sys.argv[1])) as record, one_line_errors():
    heed_signals(record)
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
FORKING = """
import os, signal, time
from curriculumdp.curriculum.preemption import heed_signals
heed_signals()
child = os.fork()
if child == 0:
    time.sleep(60)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
time.sleep(0.5)
print("alive", flush=True)
"""
ORPHAN = """
import os, time
if os.fork() == 0:
    from curriculumdp.curriculum.preemption import heed_signals
    heed_signals(lambda status: print(status, flush=True))
    print("ready", flush=True)
    time.sleep(60)
    print("went on alone", flush=True)
else:
    time.sleep(3)
    os._exit(0)
"""


def python(*arguments: object, **given: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}, **given,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_inside_a_librarys_call_ends_at_once(tmp_path, kind, status):
    process = python("-c", BUSY, tmp_path / "status")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(kind)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    assert (tmp_path / "status").read_text() == f"{status}\n"
    (line,) = [line for line in err.splitlines() if line]
    assert "nothing is lost; run the same command again" in line


def test_a_signal_to_a_forked_child_is_the_childs():
    out, err = python("-c", FORKING).communicate(timeout=60)
    assert out == "alive\n", err


def test_the_end_of_the_launcher_is_noticed():
    process = python("-c", "import os; os.environ['ACCELERATE_MIXED_PRECISION'] = 'no'\n" + ORPHAN)
    out, err = process.communicate(timeout=40)  # until the orphan, too, has closed its output
    assert out == "ready\n143\n", err
    assert "preempted" in err


def ended(process: subprocess.Popen[str], delay: float, kind: signal.Signals) -> tuple[int, str, float]:
    """The status, the words, and the seconds after a signal to the whole group, as a terminal and Slurm send it."""
    time.sleep(delay)
    os.killpg(process.pid, kind)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_start_ends_within_seconds_whenever_the_signal_comes(tmp_path, kind):
    """Imports, the data, the dry step, the plan, the run and its release, at random moments of each."""
    config, rng = config_file(tmp_path, private__steps=40), random.Random(kind)
    for number in range(12):
        process = python(
            ROOT / "launch" / "train.py", config, f"run_dir={tmp_path}/{number}", start_new_session=True
        )
        status, said, seconds = ended(process, rng.uniform(0.3, 25), kind)
        early = (-kind,) if "preempted" not in said and "interrupted" not in said else ()
        assert status in (128 + kind, 0, *early), said
        assert "Traceback" not in said
        assert seconds < 15


@pytest.mark.slow
def test_ctrl_c_on_two_processes_ends_neither_in_a_traceback_of_its_own(tmp_path):
    config, rng = config_file(tmp_path, warmup__steps=3000), random.Random(5)
    for number in range(4):
        place = tmp_path / str(number)
        process = subprocess.Popen(
            [*command(2, config), f"run_dir={place}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        _, said, _ = ended(process, rng.uniform(8, 40), signal.SIGINT)
        assert 'launch/train.py", line' not in said  # a traceback of a worker, not of the launcher
        assert (
            "curriculumdp/" not in said.replace(str(place), "").replace(str(Path.cwd()), "")
            or "error:" in said
        )
