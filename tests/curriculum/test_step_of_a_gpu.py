"""A GPU's update adds the noise of a CPU's: the same buffers from the same sum, key and step."""

import pytest
import torch
from torch import Tensor

from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.world import one_process
from dpkernels import device


class OnAGpu(Tensor):
    """A tensor that says so."""

    is_cuda = True


@pytest.mark.skipif(
    not device.INTERPRETER, reason="needs TRITON_INTERPRET=1, set before triton is first imported"
)
def test_the_update_in_one_pass_is_noise_then_the_expected_batch_then_adam_and_ema(make_run, digits):
    buffers = []
    for kind in (Tensor, OnAGpu):
        run, state = make_run(digits, one_process(), private__clip_norm=0.3, model__channels=(8,))
        phase = PrivatePhase(run)
        total = torch.randint(
            -(2**36), 2**36, state.weights.shape, generator=torch.Generator().manual_seed(1)
        )
        with device.interpreted():
            phase.update(state, 1, total.as_subclass(kind), bytes(range(32)))
        buffers.append((state.weights, state.ema, state.exp_avg, state.exp_avg_sq))
    for cpu, gpu in zip(*buffers, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-6, atol=1e-7 * float(cpu.abs().max()))
