"""The kernels' benchmark runs, says what its figures are worth, and refuses what it cannot measure."""

import subprocess
import sys

import pytest
import torch

BENCH = [sys.executable, "bench/bench_kernels.py"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], capture_output=True, text=True, check=False)


def test_a_smoke_run_times_kernel_and_reference_and_says_it_means_nothing() -> None:
    done = run("--smoke", "--rows", "chacha", "clip_sum")
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
