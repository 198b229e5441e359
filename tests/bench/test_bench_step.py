"""The step benchmark compares like with like: every private way computes the same clipped sum."""

import csv
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from bench import bench_step, step_nets, step_ways
from bench.step_nets import Net, microbatch
from bench.step_ways import WAYS, Unavailable, prepare
from bench.step_worker import Turn, Work, Worker

CPU = torch.device("cpu")
TINY = Net(8, 1, (8, 16), 1, (4,), 3)
# Ours aims below the clip norm by 2⁻¹²; the rest is fp32.
MARGIN = 2.0**-12 + 1e-5
BY_UNIT = ["opacus-hooks", "opacus-functorch", "functorch"]
BY_DRAW = ["opacus-fast", "opacus-ghost"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def gradient(way: str, draws: int, bf16: bool = False) -> torch.Tensor:
    """What a way computes, at its second step: nothing of the first may be left in it."""
    done = WAYS[way](microbatch(TINY, draws, CPU, bf16))
    done.step()
    done.step()
    return done.gradient()


@pytest.mark.parametrize(
    ("way", "draws"), [*((w, k) for w in BY_UNIT for k in (1, 2)), *((w, 1) for w in BY_DRAW)]
)
def test_the_baselines_compute_our_clipped_sum(way: str, draws: int) -> None:
    ours = gradient("ours", draws)
    assert (gradient(way, draws) - ours).norm() <= MARGIN * ours.norm()


@pytest.mark.parametrize("draws", [1, 2])
def test_functorch_computes_our_clipped_sum_under_bf16_autocast_too(draws: int) -> None:
    """bf16 takes either about as far from the sum of fp32."""
    exact = gradient("ours", draws)
    ours, theirs = ((gradient(way, draws, True) - exact).norm() for way in ("ours", "functorch"))
    assert 0 < theirs <= 2 * ours + MARGIN * exact.norm()
    assert ours <= 2.0**-6 * exact.norm()


def test_a_kernel_without_a_gpu_says_so() -> None:
    with pytest.raises(Unavailable, match="GPU"):
        WAYS["ours-planned"](microbatch(TINY, 1, CPU, False))


def test_our_ways_on_a_gpu_run_on_the_algorithms_that_training_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    for way in WAYS:
        for kind in ("cpu", "cuda"):
            monkeypatch.setattr(
                step_ways, "repeat_to_the_bit", lambda which=f"{way} {kind}": asked.append(which)
            )
            prepare(way, torch.device(kind))
    assert asked == [f"{way} cuda" for way in WAYS if way.startswith("ours")]


def test_a_run_leaves_a_row_for_each_way_and_says_why_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(step_nets.NETS, "8px-0.4M", TINY)
    out, picture = tmp_path / "step.csv", tmp_path / "step.png"
    command = "bench_step.py --nets 8px-0.4M --draws 1 --ways ours opacus-ew --rounds 2 --patience 0"
    monkeypatch.setattr(
        sys, "argv", [*command.split(), "--threads", "1", "--out", str(out), "--plot", str(picture)]
    )
    assert bench_step.main() == 0
    with out.open(newline="") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["plain", "ours", "opacus-ew"]
    for row in (rows["plain"], rows["ours"]):
        assert float(row["ratio_q1"]) <= float(row["ratio"]) <= float(row["ratio_q3"])
        assert row["command"].startswith("python bench_step.py --nets 8px-0.4M")
        assert row["torch"] == torch.__version__
        assert row["peak_mib"].isdigit()  # 0 for so small a net, or a few
    assert rows["opacus-ew"]["ms"] == ""
    assert rows["opacus-ew"]["note"] in capsys.readouterr().out
    assert picture.stat().st_size > 0


@pytest.mark.parametrize(("dying", "turns"), [("opacus-hooks", 2), ("plain", 9)])
def test_a_way_that_dies_in_a_later_turn_drops_out_alone(
    dying: str, turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the plain step, here in its third round, there is nothing to compare with: the others' turns end too."""

    class Mortal(Worker):
        def __init__(self, work: Work) -> None:
            super().__init__(work)
            self.left = turns if work.way == dying else 100

        def turn(self) -> Turn | None:
            if not self.left and self.missing is None:
                os.kill(self._process.pid, signal.SIGKILL)
                self._process.join()
            self.left -= 1
            return super().turn()

    monkeypatch.setattr(bench_step, "Worker", Mortal)
    monkeypatch.setitem(step_nets.NETS, "8px-0.4M", TINY)
    command = (
        "bench_step.py --nets 8px-0.4M --draws 1 --ways opacus-hooks ours --rounds 4 --patience 0 --threads 1"
    )
    out = tmp_path / "step.csv"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--out", str(out)])
    assert bench_step.main() == 0
    with out.open(newline="") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["plain", "opacus-hooks", "ours"]
    assert rows[dying]["note"].startswith("its process ended with -9")
    assert rows[dying]["ms"] == rows[dying]["ratio"] == ""
    others = [row for way, row in rows.items() if way != dying]
    if dying == "plain":
        assert all("the plain step ended after 2 of 4 turns" in row["note"] for row in others)
        assert all(row["rounds"] == "2" and float(row["ratio"]) > 0 for row in others)
    else:
        assert all(row["rounds"] == "4" and float(row["ratio"]) > 0 for row in others)
