"""The kernels' benchmark runs, says what its figures are worth, and refuses what it cannot measure."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import bench_kernels
from dpkernels.catalog import CATALOG

BENCH = [sys.executable, "bench/bench_kernels.py"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], capture_output=True, text=True, check=False)


def test_a_smoke_run_times_kernel_and_if_asked_reference_and_says_it_means_nothing() -> None:
    assert "reference_ms" not in run("--smoke", "--rows", "clip_sum").stdout
    done = run("--smoke", "--reference", "--rows", "chacha", "clip_sum")
    assert done.returncode == 0, done.stderr
    chacha, clip_sum, warning = done.stdout.splitlines()
    assert "'chacha'" in chacha
    assert "reference_ms" in clip_sum
    assert "say nothing" in warning


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_without_a_gpu_nothing_is_measured() -> None:
    done = run()
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_a_row_that_fails_says_why_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**inputs: Any) -> Any:
        raise RuntimeError("out of resource: shared memory\nand much more")

    monkeypatch.setitem(CATALOG, "chacha", replace(CATALOG["chacha"], call=fails))
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--smoke", "--rows", "chacha", "clip_sum"])
    assert bench_kernels.main() == 1
    chacha, clip_sum, _ = capsys.readouterr().out.splitlines()
    assert "'note': 'failed: RuntimeError: out of resource: shared memory'" in chacha
    assert "kernel_ms" in clip_sum


def test_lines_are_added_one_by_one_whether_timed_or_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "kernels.csv"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    for line in ({"row": "chacha", "note": "failed: no"}, {"row": "clip_sum", "kernel_ms": 1.5}):
        bench_kernels.append(line, results)
    with results.open(newline="") as file:
        failed, timed = csv.DictReader(file)
    assert (failed["row"], failed["kernel_ms"], failed["note"]) == ("chacha", "", "failed: no")
    assert (timed["row"], timed["kernel_ms"], timed["device"]) == ("clip_sum", "1.5", "a GPU")
