"""The warmup phase: ordinary training on central images with random augmentation, then on frequency images without.

It touches no sensitive row. From one set to the next, the moving average of the weights is handed on.

Only rank 0 trains, and broadcasts the result, since DDP's order of summation would depend on the world. Each step's
draws come from a generator seeded anew from (seed, purpose, step), so resume needs no RNG state. On a GPU a step is one
CUDA graph: its hundreds of small kernels take less time than their launches.

A step may take its gradient at perturbed weights (sharpness-aware minimisation, Foret et al., ICLR 2021).
"""

import hashlib
import math
from collections.abc import Mapping
from functools import partial

import torch
from kornia.augmentation.auto import RandAugment
from torch import Tensor

from curriculumdp.clipping.cuda_graph import Captured
from curriculumdp.config.config import Config
from curriculumdp.config.sections import PrivateConfig, WarmupConfig
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.soundness import spoilt
from curriculumdp.curriculum.state import CentralImages, State, module_tensors
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from dpkernels.noise_step import BETA1, BETA2, EPS, adam_step

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


TINY = 1e-12  # of a gradient's norm: below it, the weights are moved by less than ρ


def public_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Return a torch seed, derived from the config's public seed, for draws that touch no sensitive row."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class WarmupPhase:
    """The warmup phase: EDM training on the central and frequency images. Input and output are PUBLIC."""

    name = "warmup"

    def __init__(self, run: Run) -> None:
        config = run.config.warmup
        assert config is not None
        self.config, self.steps = config, config.steps
        self.turn = config.steps - _frequency_steps(run.config)  # the first step on frequency images
        self.sigma = run.config.private
        self.augment = RandAugment(config.augment.operations, config.augment.magnitude, policy=POLICY)
        self.capture = run.config.compute.capture and run.world.device.type == "cuda"
        self._captured: Captured | None = None
        self._ahead: tuple[int, dict[str, Tensor]] | None = None

    def begin(self, run: Run, state: State) -> None:
        state.forget_moments()

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        if not run.world.is_main:
            return {}
        if step == self.turn and step > 0:
            state.weights.copy_(state.ema)
        if self.capture:
            return {"loss": float(self._replayed(run, state, step))}
        device = run.world.device
        drawn = {name: tensor.to(device) for name, tensor in self._draw(run, state, step).items()}
        loss, gradient = _sharp_gradient(state, self.sigma, self.config.perturbation, drawn)
        adam_step(gradient, state, step, self.config.learning_rate, self.config.ema)
        return {"loss": float(loss)}

    def _replayed(self, run: Run, state: State, step: int) -> Tensor:
        """Do the step as one CUDA graph, captured in the first call, and return its loss.

        The next step's draws are made while the GPU computes this one: they take the host about as long.
        """
        ahead, self._ahead = self._ahead, None
        drawn = ahead[1] if ahead is not None and ahead[0] == step else self._draw(run, state, step)
        inputs = drawn | _adam_scalars(step, self.config.learning_rate)
        if self._captured is None:
            body = partial(_graph_step, state, self.sigma, self.config)
            buffers = (state.weights, state.exp_avg, state.exp_avg_sq, state.ema)
            before = [buffer.clone() for buffer in buffers]
            self._captured = Captured(body, {k: t.to(run.world.device) for k, t in inputs.items()})
            for buffer, kept in zip(buffers, before, strict=True):
                buffer.copy_(kept)  # the warm-up before capture trained
        loss = self._captured(inputs)["loss"]
        if step + 1 < self.steps:
            self._ahead = step + 1, self._draw(run, state, step + 1)
        return loss

    def _draw(self, run: Run, state: State, step: int) -> dict[str, Tensor]:
        """Return a step's batch, noise levels and noise, on the CPU: a function of the public seed and the step."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(public_seed(run.config.seed, self.name, step))
            images, labels = self._batch(state, step, run.config.data.classes)
            sigma = noise_level(torch.randn(len(images)), self.sigma.p_mean, self.sigma.p_std)
            noise = torch.randn(images.shape)
        return {"images": images, "labels": labels, "sigma": sigma, "noise": noise}

    def _batch(self, state: State, step: int, classes: int) -> tuple[Tensor, Tensor]:
        """Draw a step's images in [−1, 1], on the CPU, and labels (`classes` means no label)."""
        from_central = step < self.turn
        source = state.central if from_central else state.frequency
        rows = torch.randint(len(source.labels), (self.config.batch,))
        images, labels = source.images[rows].float() / 255, source.labels[rows]
        if from_central:
            images = self.augment(images).clamp(0, 1)
        if self.config.label_dropout > 0:
            dropped = torch.rand(len(rows)) < self.config.label_dropout
            labels = torch.where(dropped, torch.full_like(labels, classes), labels)
        return images * 2 - 1, labels

    def rehearse(self, run: Run, state: State) -> str | None:
        images = run.images
        some = CentralImages(torch.from_numpy(images.images[:1]), torch.from_numpy(images.labels[:1]))
        state.central = state.frequency = some
        self.begin(run, state)
        self.step(run, state, 0)
        instead = "a lower warmup.learning_rate or perturbation, or other private.p_mean, p_std or sigma_data"
        return spoilt(state, instead)

    def sync(self, run: Run, state: State) -> None:
        for buffer in (state.weights, state.exp_avg, state.exp_avg_sq, state.ema):
            run.world.broadcast_(buffer)


def _sharp_gradient(
    state: State, sigma: PrivateConfig, rho: float, drawn: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of what was drawn, and its gradient at w + ρ·g/‖g‖, g the gradient at w (Foret, equation 2).

    At ρ = 0 it is g itself. The weights are moved in place, where the network sees them, and put back to the bit. A
    gradient of 0 moves nothing.
    """
    loss, gradient = _loss_and_gradient(state, sigma, drawn)
    if not rho:
        return loss, gradient
    weights = state.weights.clone()
    state.weights.add_(gradient.div_(gradient.norm().clamp_min_(TINY)), alpha=rho)
    _, gradient = _loss_and_gradient(state, sigma, drawn)
    state.weights.copy_(weights)
    return loss, gradient


def _frequency_steps(config: Config) -> int:
    """Return the number of steps on frequency images: all, where there are no others."""
    assert config.warmup is not None
    if config.frequency is None or config.central is None:
        return config.warmup.steps if config.frequency else 0
    return config.warmup.frequency_steps or 0


def _loss_and_gradient(
    state: State, sigma: PrivateConfig, drawn: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of what was drawn, and its gradient, flat fp32 [P]."""
    denoiser = Denoiser(state.net, sigma.sigma_data)
    loss = edm_loss(denoiser, drawn["images"], drawn["labels"], drawn["sigma"], drawn["noise"]).mean()
    gradients = torch.autograd.grad(loss, list(state.net.parameters()), allow_unused=True)
    flat = torch.zeros_like(state.weights)
    for part, gradient in zip(module_tensors(state.net, flat).values(), gradients, strict=True):
        if gradient is not None:
            part.copy_(gradient)
    return loss.detach(), flat


def _graph_step(
    state: State, sigma: PrivateConfig, config: WarmupConfig, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Do a step whose every number that changes from step to step lies in `inputs`: a graph replays memory alone.

    The update is `adam_step`, operation by operation.
    """
    loss, gradient = _sharp_gradient(state, sigma, config.perturbation, inputs)
    state.exp_avg.lerp_(gradient, 1 - BETA1)
    state.exp_avg_sq.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    width = state.exp_avg_sq.sqrt().div_(inputs["root"]).add_(EPS)
    state.weights.sub_((state.exp_avg * inputs["rate"]).div_(width))
    state.ema.lerp_(state.weights, 1 - config.ema)
    return {"loss": loss}


def _adam_scalars(step: int, learning_rate: float) -> dict[str, Tensor]:
    """Return Adam's two numbers that depend on the step, fp32 []."""
    count = step + 1
    return {
        "rate": torch.tensor(learning_rate / (1 - BETA1**count)),
        "root": torch.tensor(math.sqrt(1 - BETA2**count)),
    }
