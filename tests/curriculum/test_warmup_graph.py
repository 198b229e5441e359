"""The warm-up as a CUDA graph does what the warm-up without one does, to the bit, wherever it starts."""

import pytest
import torch

from curriculumdp.clipping import cuda_graph
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import CentralImages, State
from curriculumdp.curriculum.warmup import WarmupPhase, _adam_scalars, _graph_step
from curriculumdp.world import World, one_process
from dpkernels.noise_step import adam_step
from tests.support.recorded import record_graphs

STEPS = 4


@pytest.fixture
def start(make_run, digits):
    """A run and its state at the begin of the warm-up."""

    def made() -> tuple[Run, State, WarmupPhase]:
        run, state = make_run(digits, one_process(), model__channels=(8,), warmup__steps=STEPS)
        state.central = CentralImages(
            torch.from_numpy(digits.images[:9]), torch.from_numpy(digits.labels[:9])
        )
        phase = WarmupPhase(run)
        phase.begin(run, state)
        return run, state, phase

    return made


def trained(run: Run, state: State, phase: WarmupPhase, steps: range) -> list[float]:
    return [phase.step(run, state, step)["loss"] for step in steps]


def test_replayed_steps_are_the_plain_steps_to_the_bit_also_resumed_in_the_middle(start, monkeypatch):
    run, plain, phase = start()
    losses = trained(run, plain, phase, range(STEPS))
    record_graphs(monkeypatch)
    _, state, first = start()
    first.capture = True
    seen = trained(run, state, first, range(2))
    resumed = WarmupPhase(run)
    resumed.capture = True
    seen += trained(run, state, resumed, range(2, STEPS))
    assert seen == losses
    assert len(set(losses)) == STEPS
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, state.tensors()[name]), name


def test_a_step_asked_for_again_is_drawn_again(start, monkeypatch):
    record_graphs(monkeypatch)
    run, state, phase = start()
    phase.capture = True
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    losses = trained(run, state, phase, range(2))
    state.load(before)
    assert trained(run, state, phase, range(2)) == losses


def test_capturing_leaves_the_state_as_it_was(start, monkeypatch):
    """The calls before the capture train; what they change must be undone, Adam's moments included."""
    record_graphs(monkeypatch)
    run, state, phase = start()
    trained(run, state, phase, range(2))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    phase.capture = True
    monkeypatch.setattr(cuda_graph.Captured, "__call__", lambda captured, inputs: {"loss": torch.zeros(())})
    phase.step(run, state, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_a_run_on_a_cpu_captures_nothing(start):
    run, _, phase = start()
    assert run.config.compute.capture
    assert not phase.capture


def test_the_graphs_update_is_adam_step_to_the_bit(start):
    _, state, phase = start()
    _, other, _ = start()
    for step in (0, 7, 1999):
        with pytest.MonkeyPatch.context() as patched:
            gradient = torch.randn_like(state.weights) * 10.0 ** torch.randint(-12, 3, state.weights.shape)
            patched.setattr(
                "curriculumdp.curriculum.warmup._loss_and_gradient",
                lambda *_, g=gradient: (torch.zeros(()), g),
            )
            _graph_step(state, phase.sigma, phase.config, _adam_scalars(step, 3e-4))
        adam_step(gradient, other, step, 3e-4, phase.config.ema)
        assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in state.tensors().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_captured_warm_up_trains_as_the_plain_one_on_a_gpu(make_run, digits, monkeypatch):
    """Not to the bit: there, torch multiplies by the inverse of a number on the host instead of dividing by it."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    trained_weights, moved = [], torch.zeros(())
    for capture in (True, False):
        world = World(0, 1, torch.device("cuda"))
        run, state = make_run(digits, world, compute__device="cuda", compute__capture=capture)
        begin = state.weights.clone()
        state.central = CentralImages(
            torch.from_numpy(digits.images[:9]), torch.from_numpy(digits.labels[:9])
        )
        phase = WarmupPhase(run)
        assert phase.capture is capture
        phase.begin(run, state)
        trained(run, state, phase, range(STEPS))
        trained_weights.append(state.weights)
        moved = (state.weights - begin).norm()
    assert (trained_weights[0] - trained_weights[1]).norm() <= 1e-2 * moved
