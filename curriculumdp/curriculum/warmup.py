"""The warmup phase: ordinary training on central images with random augmentation. It touches no sensitive row.

Only rank 0 trains, and broadcasts the result, since DDP's order of summation would depend on the world. Each step's
draws come from a generator seeded anew from (seed, purpose, step), so resume needs no RNG state.
"""

import hashlib

import torch
from kornia.augmentation.auto import RandAugment
from torch import Tensor

from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.soundness import spoilt
from curriculumdp.curriculum.state import CentralImages, State, module_tensors
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from dpkernels.noise_step import adam_step

# kornia's default ranges invert and darken even at small magnitudes. At magnitude m of 30 an operation goes m/30 of the
# way into the ranges here, which keep a central image recognisable.
POLICY = [
    [("rotate", -30.0, 30.0)],
    [("shear_x", -0.3, 0.3)],
    [("shear_y", -0.3, 0.3)],
    [("translate_x", -0.3, 0.3)],
    [("translate_y", -0.3, 0.3)],
    [("contrast", 1.0, 1.9)],
    [("sharpness", 1.0, 1.9)],
]


def public_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Return a torch seed, derived from the config's public seed, for draws that touch no sensitive row."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class WarmupPhase:
    """The warmup phase: EDM training on the central images. Input and output are PUBLIC."""

    name = "warmup"

    def __init__(self, run: Run) -> None:
        config = run.config.warmup
        assert config is not None
        self.config, self.steps = config, config.steps
        self.sigma = run.config.private
        self.augment = RandAugment(config.augment.operations, config.augment.magnitude, policy=POLICY)

    def begin(self, run: Run, state: State) -> None:
        state.forget_moments()

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        if not run.world.is_main:
            return {}
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(public_seed(run.config.seed, self.name, step))
            images, labels = self._batch(state, run.config.data.classes)
            sigma = noise_level(torch.randn(len(images)), self.sigma.p_mean, self.sigma.p_std)
            noise = torch.randn(images.shape)
        device = run.world.device
        denoiser = Denoiser(state.net, self.sigma.sigma_data)
        loss = edm_loss(
            denoiser, images.to(device), labels.to(device), sigma.to(device), noise.to(device)
        ).mean()
        gradients = torch.autograd.grad(loss, list(state.net.parameters()), allow_unused=True)
        flat = torch.zeros_like(state.weights)
        for part, gradient in zip(module_tensors(state.net, flat).values(), gradients, strict=True):
            if gradient is not None:
                part.copy_(gradient)
        adam_step(flat, state, step, config.learning_rate, config.ema)
        return {"loss": float(loss.detach())}

    def _batch(self, state: State, classes: int) -> tuple[Tensor, Tensor]:
        """Draw a batch of augmented central images in [−1, 1], on the CPU, and labels (`classes` means no label)."""
        central = state.central
        rows = torch.randint(len(central.labels), (self.config.batch,))
        images = self.augment(central.images[rows].float() / 255).clamp(0, 1)
        labels = central.labels[rows]
        if self.config.label_dropout > 0:
            dropped = torch.rand(len(rows)) < self.config.label_dropout
            labels = torch.where(dropped, torch.full_like(labels, classes), labels)
        return images * 2 - 1, labels

    def rehearse(self, run: Run, state: State) -> str | None:
        images = run.images
        state.central = CentralImages(
            torch.from_numpy(images.images[:1]), torch.from_numpy(images.labels[:1])
        )
        self.begin(run, state)
        self.step(run, state, 0)
        return spoilt(state, "a lower warmup.learning_rate, or other private.p_mean, p_std or sigma_data")

    def sync(self, run: Run, state: State) -> None:
        for buffer in (state.weights, state.exp_avg, state.exp_avg_sq, state.ema):
            run.world.broadcast_(buffer)
