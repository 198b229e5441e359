"""Stage two: DP-SGD on the sensitive images (Abadi et al. 2016; noise multiplicity: DPDM, Dockhorn et al. 2022).

A step, as design D3 has it: Poisson rows; per-unit gradients, one norm per unit over all parameters, clipped and
rounded to a grid; an exact integer sum over microbatches and ranks; the ledger's entry; Gaussian noise once; the
division by the EXPECTED batch; Adam; EMA.
"""

from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import torch
from torch import Tensor

from curriculumdp.checkpoint import weights_digest
from curriculumdp.clipping.capture import PerUnitGradients
from curriculumdp.curriculum.phase import Run, State
from curriculumdp.data.images import ImageSet
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from curriculumdp.privacy.noise import add_noise, from_grid
from curriculumdp.privacy.randomness import normals, uniforms, unit_words
from curriculumdp.privacy.sampling import microbatches, poisson_rows
from dpkernels.noise_step import adam_step, noise_step

# Words of a draw, in order: which image, label dropout, noise level (two), then the diffusion noise.
HEAD_WORDS = 4


class PrivatePhase:
    """DP-SGD under the plan's rate and noise multiplier."""

    name = "private"

    def __init__(self, run: Run) -> None:
        config = run.config.private
        self.config, self.steps = config, config.steps
        planned = run.plan.phase(self.name).release
        assert planned is not None
        self.release = planned
        self.expected_units = config.sample_rate * run.config.data.units
        self.engine: PerUnitGradients | None = None

    def begin(self, run: Run, state: State) -> None:
        state.forget_moments()

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        rows = poisson_rows(run.rows_key(self.name, step), run.config.data.units, self.release.sample_rate)
        total, figures = self.clipped_sum(run, state, step, rows)
        key = run.charge(self.release, step, self.config.clip_norm, total)
        self.update(state, step, total, key)
        return figures | {"units": float(len(rows))}

    def update(self, state: State, step: int, total: Tensor, key: bytes) -> None:
        """Noise once, the division by the EXPECTED batch, Adam, EMA (D3.5, D3.6), the same on every rank.

        total: the sum over the ranks, int64 [P]; key: from its ledger entry (both PRIVATE). On a GPU it is one pass
        over the buffers, which draws the same noise to within a step of the grid, and zeroes `total`.
        """
        sigma, clip_norm, rate = self.release.noise_multiplier, self.config.clip_norm, self.learning_rate(step)
        if total.is_cuda:
            noise_step(
                total, key, sigma, clip_norm, self.expected_units, state, step, rate, self.config.ema
            )
            return
        noisy = add_noise(total, sigma, key)
        gradient = from_grid(noisy, clip_norm) / self.expected_units
        adam_step(gradient.float(), state, step, rate, self.config.ema)

    def learning_rate(self, step: int) -> float:
        """Constant, then linear to 0 over the last `decay` of the steps."""
        decaying = self.config.decay * self.steps
        left = (self.steps - step) / decaying if decaying else 1.0
        return self.config.learning_rate * min(1.0, left)

    def clipped_sum(
        self, run: Run, state: State, step: int, rows: np.ndarray
    ) -> tuple[Tensor, dict[str, float]]:
        """PRIVATE: this rank's share of the un-noised sum on the grid, int64 [P], and its figures.

        Microbatch number i is rank i mod world's; no collective runs in here. What a microbatch computes
        depends on its rows alone, so neither the world nor the order can show in the sum.
        """
        compute, world = run.config.compute, run.world
        total = torch.zeros_like(state.weights, dtype=torch.int64)
        if self.engine is None:
            self.engine = PerUnitGradients(state.net, compute.microbatch, self.config.draws)
        denoiser = Denoiser(state.net, self.config.sigma_data)
        losses, norms, excluded = [], [], 0
        for units in microbatches(rows, compute.microbatch)[world.rank :: world.size]:
            batch = draw_batch(
                run.images,
                torch.from_numpy(units),
                self.config.draws,
                run.draws_key(self.name),
                step,
                world.device,
            )
            loss = self.engine.backward(partial(self._unit_losses, run, denoiser, batch))
            result = self.engine.add_clipped_grads(total, self.config.clip_norm, batch.present)
            losses.append(loss[batch.present])
            norms.append(result.norms[batch.present])
            excluded += result.excluded
        figures = {"excluded": float(excluded)}
        if losses and len(kept := torch.cat(norms)):
            figures |= {"loss": float(torch.cat(losses).mean()), "norm": float(kept.median())}
        return total, figures

    def _unit_losses(self, run: Run, denoiser: Denoiser, batch: "UnitBatch") -> Tensor:
        """The loss of each unit [B]: the mean over its K draws."""
        bf16 = run.config.compute.precision == "bf16"
        images = batch.images
        if run.config.compute.memory_format == "channels_last":
            images = images.contiguous(memory_format=torch.channels_last)
        sigma = noise_level(batch.level, self.config.p_mean, self.config.p_std)
        with torch.autocast(run.world.device.type, torch.bfloat16, enabled=bf16):
            losses = edm_loss(denoiser, images, batch.labels, sigma, batch.noise)
        return losses.view(-1, self.config.draws).mean(1)

    def sync(self, run: Run, state: State) -> None:
        """Every rank made the same update from the same noisy sum: they must agree to the bit."""
        run.world.require_equal("the weights", weights_digest(state.weights))


@dataclass(frozen=True)
class UnitBatch:
    """PRIVATE: B units, K draws each, a unit's draws contiguous.

    images fp32 [B·K, C, H, W] in [−1, 1]; labels int64 [B·K]; level fp32 [B·K] standard normal; noise as
    images; present bool [B]: False for padding and for a unit that owns no image.
    """

    images: Tensor
    labels: Tensor
    level: Tensor
    noise: Tensor
    present: Tensor


def draw_batch(
    images: ImageSet, units: Tensor, draws: int, key: bytes, step: int, device: torch.device
) -> UnitBatch:
    """The draws of a microbatch; `units` int64 [B], −1 for padding.

    Everything drawn for a unit is a function of (key, step, unit, draw): where it stands in the microbatch and
    who stands beside it changes nothing (design D1).
    """
    places = units.clamp(min=0)
    counts = torch.from_numpy(images.counts)[places]
    present = (units >= 0) & (counts > 0)
    shape = (len(units) * draws, *images.images.shape[1:])
    pixels = prod(images.images.shape[1:])
    words = unit_words(key, step, places.to(device), draws, HEAD_WORDS + pixels + pixels % 2)
    pick = (uniforms(words[..., 0]).double().cpu() * counts[:, None]).long()
    owned = torch.from_numpy(images.offsets)[places][:, None] + torch.minimum(
        pick, (counts - 1).clamp(min=0)[:, None]
    )
    rows = torch.from_numpy(images.order)[torch.where(present[:, None], owned, 0)].flatten()
    seen = present.repeat_interleave(draws)
    pixels_01 = torch.from_numpy(images.images)[rows].to(device).float() / 255
    level = normals(words[..., 2:4])[..., 0].flatten()
    noise = normals(words[..., HEAD_WORDS:])[..., :pixels].reshape(shape)
    seen = seen.to(device)
    return UnitBatch(
        torch.where(seen[:, None, None, None], pixels_01 * 2 - 1, 0.0),
        torch.where(seen, torch.from_numpy(images.labels)[rows].to(device), 0),
        level.float(),
        noise.float(),
        present.to(device),
    )
