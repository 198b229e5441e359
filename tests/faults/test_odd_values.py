"""Gradients that are no numbers and clocks that jump: the run ends as it should."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.curriculum import train
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import State
from curriculumdp.curriculum.warmup import WarmupPhase
from tests.support.refusal import refusal_of
from tests.support.runs import finish, outcome_of
from tests.support.small_run import Observer, ledger_lines, small
from tests.support.tried import TRIED

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_units_whose_gradients_are_no_numbers_are_left_out_or_clipped(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Every other unit, at one coordinate or all: the weights stay finite, and the charges are the plan's."""
    original = PerUnitGradients.add_clipped_grads
    calls = 0

    def spoiled(self: Any, total: Any, clip_norm: float, present: Any) -> Any:
        nonlocal calls
        calls += 1
        self.grads[::2, : 1 if calls % 2 else None] = value
        before = total.clone()
        result = original(self, total, clip_norm, present)
        added = (total - before).double() / 2.0**36
        assert torch.linalg.vector_norm(added) <= len(present), "a unit passed the clip norm"
        return result

    monkeypatch.setattr(PerUnitGradients, "add_clipped_grads", spoiled)
    monkeypatch.setattr(
        train, "dry_step", lambda *_: None
    )  # made images, too, would have such gradients here
    release = finish(small(tmp_path / "run", data))
    assert calls >= 3
    assert all(tensor.isfinite().all() for tensor in load_file(release / WEIGHTS).values())
    assert sum(line["kind"] == "charge" for line in ledger_lines(tmp_path / "run")) == 5
    TRIED["faults runs with spoiled gradients"] += 1


def test_weights_that_the_warm_up_ruined_stop_the_run_before_dp_sgd_spends(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = WarmupPhase.step

    def ruinous(self: WarmupPhase, run: Run, state: State, step: int) -> dict[str, float]:
        figures = original(self, run, state, step)
        if step == 2:  # the last, which the dry step does not see
            state.weights[7] = float("nan")
        return figures

    monkeypatch.setattr(WarmupPhase, "step", ruinous)
    for _ in range(2):
        message = refusal_of(lambda: finish(small(tmp_path / "run", data, warmup__steps=3)))
        assert message is not None
        assert "warmup.learning_rate" in message
    charged = {line["phase"] for line in ledger_lines(tmp_path / "run") if line["kind"] == "charge"}
    assert charged == {"central"}


@pytest.mark.parametrize("jump", ["backwards", "forwards", "anywhere"])
def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, data: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, jump: str
) -> None:
    rng, now = random.Random(4), [time.time()]

    def jumping() -> float:
        now[0] += {"backwards": -1e6, "forwards": 1e8, "anywhere": rng.uniform(-1e9, 1e9)}[jump]
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumping() * 1e9))
    observer = Observer(tmp_path / "seen")
    with observer.watching(tmp_path / "run"):
        release = finish(small(tmp_path / "run", data))
    assert outcome_of(release) == undisturbed
    TRIED["faults jumping clocks"] += 1
