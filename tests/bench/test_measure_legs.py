"""The script for rented time: every leg runs here first, stops at its limit, and training goes on from its files."""

import argparse
import csv
import io
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import measure_gpu
from bench.measure_gpu import Leg, legs_of, missing, rehearsal, run, warm_commands

SCRIPT = ["bash", "bench/measure_gpu.sh"]
TINY = [
    *(
        "compute.device=cpu",
        "model.channels=[8]",
        "model.attention=[]",
        "central.queries=1",
        "warmup.steps=1",
    ),
    *("sampling.steps=2", "sampling.per_class=1"),
]


def asked(out: Path, **changes: object) -> argparse.Namespace:
    values = {
        "out": out,
        "carried": out,
        "train_seconds": 70,
        "config": measure_gpu.CONFIG,
        "rehearse": False,
        "legs": None,
        "data": None,
    }
    return argparse.Namespace(**values | changes)


@pytest.mark.slow  # a minute and a half of CPU time
def test_a_rehearsal_goes_through_every_leg_without_a_gpu(tmp_path: Path) -> None:
    command = [*SCRIPT, "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    ended = [line for line in done.stdout.splitlines() if line.startswith("==")]
    assert [line.split()[1:3] for line in ended] == [
        [f"{leg.name}:", "done,"] for leg in legs_of(asked(tmp_path))
    ]
    assert "] part 0 of 99: 1 of " in done.stdout, "no kernel was compiled beforehand"
    assert (tmp_path / "measure.log").read_text().splitlines() == done.stdout.splitlines()
    with (tmp_path / "step_cpu.csv").open(newline="") as file:
        timed = {line["way"] for line in csv.DictReader(file) if line["ms"]}
    assert timed == {"plain", "ours", "compiled", "opacus-ghost"}
    assert "way ours" in (tmp_path / "profile.txt").read_text()
    with (tmp_path / "runs_cpu.csv").open(newline="") as file:
        assert [line["private_steps"] for line in csv.DictReader(file)] == ["2"]
    assert (tmp_path / "run.tar.gz.aa").is_file()


def test_no_leg_takes_more_than_two_minutes_all_of_them_ten_and_none_waits_for_a_longer_one(
    tmp_path: Path,
) -> None:
    legs = legs_of(asked(tmp_path))
    assert max(leg.seconds for leg in legs) <= 120
    assert sum(leg.seconds for leg in legs) <= 600
    assert [leg.name for leg in legs] == [leg.name for leg in rehearsal(asked(tmp_path, rehearse=True))]
    assert [leg.name for leg in legs][-2:] == ["compiled", "opacus"]
    assert all(Path(word).is_file() for leg in legs for word in leg.command if word.endswith((".py", ".sh")))


def test_a_leg_is_stopped_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    loop = f"while true; do touch {alive}; sleep 0.05; done"
    log, began = io.StringIO(), time.monotonic()
    assert not run(Leg("long", 1.0, ["bash", "-c", f"echo begun; bash -c '{loop}'"]), log)
    assert time.monotonic() - began < 8
    assert "begun" in log.getvalue()
    assert "== long: stopped, the leg has 1 s" in log.getvalue()
    alive.unlink()
    time.sleep(0.3)
    assert not alive.exists(), "what the leg started goes on"


def test_a_leg_that_fails_says_so_and_lines_come_as_they_are_written(tmp_path: Path) -> None:
    log = io.StringIO()
    assert not run(
        Leg("bad", 20, [sys.executable, "-c", "print('one', flush=True); raise SystemExit(3)"]), log
    )
    assert log.getvalue().splitlines()[0].endswith("] one")
    assert "== bad: exit status 3" in log.getvalue()
    assert run(Leg("good", 20, ["true"]), log)


def test_what_is_missing_is_named_in_the_first_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_gpu, "NEEDED", ("torch", "no_such_package"))
    began = time.monotonic()
    assert missing(asked(tmp_path)) == "these packages are missing: no_such_package"
    assert time.monotonic() - began < 1
    monkeypatch.setattr(measure_gpu, "NEEDED", ("torch",))
    monkeypatch.setattr(measure_gpu, "driver_works", lambda: True)
    assert missing(asked(tmp_path, config="configs/nowhere.yaml")) == "configs/nowhere.yaml: no such file"
    nowhere = tmp_path / "nowhere.yaml"
    nowhere.write_text("data: {path: /nowhere/at/all}")
    assert missing(asked(tmp_path, config=str(nowhere))) == "data.path: no data at /nowhere/at/all"
    assert missing(asked(tmp_path, config=str(nowhere), data=str(tmp_path))) is None
    (train,) = (leg.command for leg in legs_of(asked(tmp_path, data="/mine")) if leg.name == "train")
    assert train[-1] == "data.path=/mine"


def test_kernels_and_the_compiled_step_are_warmed_only_for_the_legs_that_use_them(tmp_path: Path) -> None:
    def scripts(*legs: str) -> set[str]:
        return {command[2] for command in warm_commands(asked(tmp_path, legs=list(legs) or None))}

    assert scripts() == {"bench/warm_kernels.py", "bench/bench_step.py"}
    assert scripts("step") == {"bench/warm_kernels.py"}
    assert scripts("tests") == set()


@pytest.mark.slow
def test_a_training_leg_stops_itself_and_the_next_goes_on_elsewhere_from_its_files(tmp_path: Path) -> None:
    def leg(run_dir: Path) -> bytes:
        """The ledger after a leg."""
        overrides = [*TINY, "private.steps=2000", "checkpoint.keep=1", f"run_dir={run_dir}"]
        places = [str(tmp_path / "carried"), str(tmp_path)]
        command = ["bash", "bench/train_leg.sh", "configs/digits.yaml", "75", *places, *overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "preempted: progress is saved" in done.stdout
        return (run_dir / "private" / "ledger.jsonl").read_bytes()

    first = leg(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    files = sorted((tmp_path / "carried").iterdir())
    assert files
    assert max(file.stat().st_size for file in files) <= 15 * 2**20
    second = leg(tmp_path / "second")
    assert second.startswith(first)
    assert len(second) > len(first)
