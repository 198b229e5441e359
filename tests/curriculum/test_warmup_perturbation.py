"""A warm-up step at perturbed weights: the gradient ρ further uphill, applied to the weights as they were."""

import pytest
import torch

from curriculumdp.curriculum import warmup
from curriculumdp.curriculum.state import CentralImages, State
from curriculumdp.curriculum.warmup import WarmupPhase, _loss_and_gradient, _sharp_gradient
from curriculumdp.world import one_process
from tests.support.recorded import record_graphs

STEPS = 3


@pytest.fixture
def start(make_run, digits):
    """A run, its state at the begin of the warm-up, and the phase, for a ρ."""

    def made(rho: float):
        changes = {"model__channels": (8,), "warmup__steps": STEPS, "warmup__perturbation": rho}
        run, state = make_run(digits, one_process(), **changes)
        state.central = CentralImages(
            torch.from_numpy(digits.images[:9]), torch.from_numpy(digits.labels[:9])
        )
        phase = WarmupPhase(run)
        phase.begin(run, state)
        return run, state, phase

    return made


def trained(start, rho: float) -> tuple[State, list[float]]:
    run, state, phase = start(rho)
    return state, [phase.step(run, state, step)["loss"] for step in range(STEPS)]


@pytest.mark.parametrize("rho", [0.01, 0.3])
def test_the_gradient_is_that_of_the_weights_moved_by_rho_uphill(start, rho):
    run, state, phase = start(rho)
    drawn = phase._draw(run, state, 0)
    before = state.weights.clone()
    loss, gradient = _sharp_gradient(state, phase.sigma, rho, drawn)
    assert torch.equal(state.weights, before)
    there, uphill = _loss_and_gradient(state, phase.sigma, drawn)
    assert torch.equal(loss, there), "the loss that is shown is that of the weights"
    state.weights.add_(uphill * (rho / uphill.norm()))
    assert float((state.weights - before).norm()) == pytest.approx(rho, rel=1e-3)
    higher, expected = _loss_and_gradient(state, phase.sigma, drawn)
    assert float(higher) > float(there)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert not torch.allclose(gradient, uphill, rtol=1e-2)


def test_without_a_perturbation_a_step_is_the_plain_one(start, monkeypatch):
    run, state, phase = start(0.0)
    calls = []
    once = _loss_and_gradient
    monkeypatch.setattr(warmup, "_loss_and_gradient", lambda *given: calls.append(1) or once(*given))
    phase.step(run, state, 0)
    assert len(calls) == 1


def test_a_gradient_of_zero_or_near_it_moves_nothing(start, monkeypatch):
    run, state, phase = start(0.1)
    for size in (0.0, 1e-24):
        seen = []

        def flat(state: State, *_: object, size: float = size, seen: list = seen) -> tuple:
            seen.append(state.weights.clone())
            return torch.zeros(()), torch.full_like(state.weights, size)

        monkeypatch.setattr(warmup, "_loss_and_gradient", flat)
        phase.step(run, state, 0)
        assert len(seen) == 2
        torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-9)


def test_as_one_graph_it_does_the_same_to_the_bit(start, monkeypatch):
    plain, losses = trained(start, 0.1)
    other, _ = trained(start, 0.0)
    assert not torch.equal(plain.weights, other.weights)
    record_graphs(monkeypatch)
    run, state, phase = start(0.1)
    phase.capture = True
    assert [phase.step(run, state, step)["loss"] for step in range(STEPS)] == losses
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, state.tensors()[name]), name
