"""What is trained is what diffusers' schedulers sample."""

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor, nn

from curriculumdp.diffusion.denoiser import SIGMA_DATA, Denoiser
from curriculumdp.diffusion.sample import build_scheduler


class Recorder(nn.Module):
    """A network that keeps what it is fed and answers with something of its own."""

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool
    ) -> tuple[Tensor]:
        self.seen = (sample, timestep, class_labels)
        return (torch.sin(3 * sample),)


@pytest.mark.parametrize("kind", [EDMDPMSolverMultistepScheduler, EDMEulerScheduler])
def test_coefficients_are_those_of_the_schedulers(kind: type) -> None:
    scheduler = build_scheduler(kind, SIGMA_DATA)
    scheduler.set_timesteps(9)
    net, noisy = Recorder(), torch.randn(2, 1, 4, 4)
    for step, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[step]
        ours = Denoiser(net)(noisy, sigma.expand(2), torch.tensor([0, 1]))
        scheduler._step_index = step
        fed = scheduler.scale_model_input(noisy, t)
        torch.testing.assert_close(net.seen[0], fed, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(net.seen[1], t.expand(2), rtol=1e-5, atol=1e-6)
        theirs = scheduler.precondition_outputs(noisy, torch.sin(3 * fed), sigma)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_double_precision_stays_double() -> None:
    noisy = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    out = Denoiser(Recorder())(noisy, torch.tensor([0.1, 2.0], dtype=torch.float64), torch.tensor([0, 1]))
    assert out.dtype == torch.float64
