"""The non-private reference: the same network, loss and settings, trained on the real images without clipping or noise.

It says what the network could learn; it bounds what a private run can reach from above. It has no ledger and no
certificate, hence nothing that could be exported: its weights are as private as the images.
"""

import torch

from curriculumdp.config.config import Config
from curriculumdp.curriculum.average import ema_decay
from curriculumdp.curriculum.declared import load_declared
from curriculumdp.curriculum.initial import initial_state
from curriculumdp.curriculum.state import State, module_tensors
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from dpkernels.noise_step import adam_step


def train_without_privacy(config: Config) -> State:
    """PRIVATE: the state after `private.steps` ordinary steps on batches of the expected size, from fresh weights.

    Rows are drawn from torch's global generator, seeded by the config's seed; each has `draws` noise levels, as in
    the private run, but independent ones, of images as they are. The curriculum is that of real images alone.
    """
    private = config.private
    torch.set_num_threads(config.compute.threads)
    device = torch.device("cpu")
    images = load_declared(config, None)
    pixels = torch.from_numpy(images.images)
    labels = torch.from_numpy(images.labels)
    state = initial_state(config, device)
    denoiser = Denoiser(state.net, private.sigma_data)
    batch = round(private.sample_rate * len(labels))
    decaying = private.decay * private.steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for step in range(private.steps):
            rows = torch.randint(len(labels), (batch,)).repeat_interleave(private.draws)
            real = pixels[rows].float() / 127.5 - 1
            sigma = noise_level(torch.randn(len(rows)), private.p_mean, private.p_std)
            loss = edm_loss(denoiser, real, labels[rows], sigma, torch.randn(real.shape)).mean()
            flat = torch.zeros_like(state.weights)
            # The null class gets no gradient where labels are never left out.
            gradients = torch.autograd.grad(loss, list(state.net.parameters()), allow_unused=True)
            for part, gradient in zip(module_tensors(state.net, flat).values(), gradients, strict=True):
                if gradient is not None:
                    part.copy_(gradient)
            left = (private.steps - step) / decaying if decaying else 1.0
            rate, decay = private.learning_rate * min(1.0, left), ema_decay(private, step)
            adam_step(flat, state, step, rate, decay)
    return state
