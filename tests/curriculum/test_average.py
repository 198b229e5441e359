"""The average that is released: of constant decay, or a power function of the step, on every path of the update."""

import numpy as np
import pytest
import torch
from torch import Tensor

from curriculumdp.curriculum import private
from curriculumdp.curriculum.average import ema_decay, power
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.world import one_process
from tests.curriculum.test_step_of_a_gpu import OnAGpu
from tests.support.runs import finish, in_child, in_world, kill_at, outcome_of, tiny

WIDTH = {"private__ema_width": 0.15}


def shares(config, steps: int) -> np.ndarray:
    """What each step's weights count in the average after `steps` steps; the first is that of the weights before."""
    found = np.array([1.0])
    for step in range(steps):
        decay = ema_decay(config, step)
        found = np.append(found * decay, 1 - decay)
    return found


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2, 0.25])
@pytest.mark.parametrize("steps", [400, 4000])
def test_the_width_is_the_averages_standard_deviation_in_lengths_of_the_run(tmp_path, width, steps):
    found = shares(tiny(tmp_path, private__ema_width=width).private, steps)
    assert found.sum() == pytest.approx(1)
    assert found[0] == 0, "something is left of the weights before the phase"
    when = np.arange(steps + 1) / steps
    mean = found @ when
    assert np.sqrt(found @ (when - mean) ** 2) == pytest.approx(width, rel=0.02)


def test_the_published_widths_have_the_published_powers():
    """Karras et al. 2024, section 3.1: γ = 6.94 is 0.10 wide, γ = 16.97 is 0.05 wide."""
    for gamma in (0.5, 1.0, 6.94, 16.97):
        width = np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
        assert power(width) == pytest.approx(gamma)
    assert power(0.1) == pytest.approx(6.94, abs=0.005)
    assert power(0.05) == pytest.approx(16.97, abs=0.005)


def test_without_a_width_the_decay_is_constant(tmp_path):
    private = tiny(tmp_path, private__ema=0.9).private
    assert {ema_decay(private, step) for step in range(50)} == {0.9}


@pytest.mark.parametrize("changes", [WIDTH, {"private__ema": 0.7}], ids=str)
def test_a_gpus_update_is_given_the_decay_of_a_cpus(monkeypatch, make_run, digits, changes):
    run, state = make_run(digits, one_process(), model__channels=(8,), **changes)
    phase, decays = PrivatePhase(run), []
    monkeypatch.setattr(private, "noise_step", lambda *given: decays.append(given[-1]))
    monkeypatch.setattr(private, "adam_step", lambda *given: decays.append(given[-1]))
    for step in (0, 1, 5):
        for kind in (Tensor, OnAGpu):
            total = torch.zeros_like(state.weights, dtype=torch.int64).as_subclass(kind)
            phase.update(state, step, total, bytes(range(32)))
    assert decays == [ema_decay(phase.config, step) for step in (0, 0, 1, 1, 5, 5)]


def test_after_the_first_step_the_average_is_its_weights(make_run, digits):
    run, state = make_run(digits, one_process(), model__channels=(8,), **WIDTH)
    phase = PrivatePhase(run)
    for step, equal in [(0, True), (1, False)]:
        phase.update(state, step, torch.zeros_like(state.weights, dtype=torch.int64), bytes([step] * 32))
        assert torch.equal(state.weights, state.ema) is equal


def test_a_varied_run_that_was_killed_or_shared_ends_as_one_process_does(tmp_path):
    """Of all options that vary the draws, the warm-up and the average: the same bits, whatever happened on the way."""
    varied = WIDTH | {
        **{"warmup__perturbation": 0.05, "data__flip": True, "data__shift": 1},
        **{"private__noise_levels": "spread", "compute__microbatch": 8},
    }
    whole = outcome_of(finish(tiny(tmp_path / "whole", **varied)))
    killed = tiny(tmp_path / "killed", **varied)

    def interrupted() -> None:
        kill_at(PrivatePhase, "step", 5)
        finish(killed)

    assert in_child(interrupted) < 0
    assert outcome_of(finish(killed)) == whole
    shared = tiny(tmp_path / "shared", **varied)
    assert in_world(2, lambda world: finish(shared, world)) == [0, 0]
    assert outcome_of(tmp_path / "shared" / "release") == whole
