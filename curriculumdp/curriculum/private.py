"""The private phase, DP-SGD (Abadi et al. 2016): sampled units, their losses, learning rate, update.

Noise multiplicity is from DPDM (Dockhorn et al. 2022).

A step (design D3): Poisson rows; per-unit gradients, with one norm per unit over all parameters, clipped and rounded
to a grid; an exact integer sum over microbatches and ranks; the ledger's entry; Gaussian noise, once; division by the
EXPECTED batch; Adam; EMA.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from curriculumdp.checkpoint import weights_digest
from curriculumdp.curriculum.average import ema_decay
from curriculumdp.curriculum.batch import UnitBatch, draw_batch
from curriculumdp.curriculum.clipped_sum import Microbatch, Seen, figures_of, figures_table
from curriculumdp.curriculum.engine import build_engine
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.soundness import spoilt
from curriculumdp.curriculum.state import State
from curriculumdp.curriculum.unit_draws import Variety
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.loss import edm_loss, noise_level
from curriculumdp.privacy.grid_noise import add_noise, from_grid
from curriculumdp.privacy.sampling import microbatches, poisson_rows
from curriculumdp.privacy.secret import KEY_BYTES
from dpkernels.noise_step import adam_step, noise_step


class PrivatePhase:
    """DP-SGD at the plan's sample rate and noise multiplier."""

    name = "private"

    def __init__(self, run: Run) -> None:
        config = run.config.private
        self.config, self.steps = config, config.steps
        planned = run.plan.phase(self.name).event
        assert planned is not None
        self.event = planned
        self.expected_units = config.sample_rate * run.config.data.units
        data = run.config.data
        self.variety = Variety(config.noise_levels == "spread", data.flip, data.shift)
        self.work: Microbatch | None = None

    def begin(self, run: Run, state: State) -> None:
        state.forget_moments()

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        rows = poisson_rows(run.rows_key(self.name, step), run.config.data.units, self.event.sample_rate)
        total, seen = self.clipped_sum(run, state, step, rows)
        figures = self.figures(run, rows, seen)
        key = run.charge(self.event, step, self.config.clip_norm, total)
        self.update(state, step, total, key)
        return figures | {"units": float(len(rows))}

    def update(self, state: State, step: int, total: Tensor, key: bytes) -> None:
        """Add noise once, divide by the EXPECTED batch, update Adam and the EMA (D3.5, D3.6); equal on every rank.

        total: the sum over the ranks, int64 [P]; key: from its ledger entry; both PRIVATE. On a GPU this is one pass
        over the buffers, which draws the same noise to within one step of the grid and zeroes `total`.
        """
        sigma, clip_norm, rate, decay = (
            self.event.noise_multiplier,
            self.config.clip_norm,
            self.learning_rate(step),
            ema_decay(self.config, step),
        )
        if total.is_cuda:
            noise_step(total, key, sigma, clip_norm, self.expected_units, state, step, rate, decay)
            return
        noisy = add_noise(total, sigma, key)
        gradient = from_grid(noisy, clip_norm) / self.expected_units
        adam_step(gradient.float(), state, step, rate, decay)

    def learning_rate(self, step: int) -> float:
        """Return a step's learning rate: constant, then linear to 0 over the last fraction `decay` of the steps."""
        decaying = self.config.decay * self.steps
        left = (self.steps - step) / decaying if decaying else 1.0
        return self.config.learning_rate * min(1.0, left)

    def clipped_sum(self, run: Run, state: State, step: int, rows: np.ndarray) -> tuple[Tensor, list[Seen]]:
        """Return this rank's part of the sum before noise, on the grid, int64 [P], and microbatch metrics. PRIVATE.

        Rank r computes the microbatches i with i mod world = r; no collective runs here. A microbatch's result depends
        on its rows alone, so neither the world nor the order shows in the sum. A unit without images keeps its slot:
        if it were dropped, the units after it would move, their arithmetic would change, and the sums of two
        neighbours would differ by more than one unit's vector. Keeping the slot, not the clip's margin, bounds the
        sensitivity.
        """
        compute, world = run.config.compute, run.world
        work = self.work = self.work or self._microbatch(run, state)
        work.total.zero_()
        seen = [
            work.add(self._draw(run, step, units))
            for units in microbatches(rows, compute.microbatch)[world.rank :: world.size]
        ]
        return work.total.clone(), seen

    def figures(self, run: Run, rows: np.ndarray, seen: list[Seen]) -> dict[str, float]:
        """Return the metrics of all ranks' units, on every rank. PRIVATE: nothing that is released may depend on them.

        It is one collective, which every rank joins even without microbatches: the sample, hence the table's shape, is
        the same on all.
        """
        world, size = run.world, run.config.compute.microbatch
        table = figures_table(seen, world.rank, world.size, -(-len(rows) // size), size).to(world.device)
        world.gather_figures_(table)
        return figures_of(table)

    def _microbatch(self, run: Run, state: State) -> Microbatch:
        """Build the work of a microbatch, once per phase; on a GPU it is captured as a CUDA graph."""
        compute, device = run.config.compute, run.world.device
        denoiser = Denoiser(state.net, self.config.sigma_data)
        return Microbatch(
            build_engine(state.net, compute, self.config.draws),
            partial(self._unit_losses, run, denoiser),
            self.config.clip_norm,
            torch.zeros_like(state.weights, dtype=torch.int64),
            capture=compute.capture and device.type == "cuda",
        )

    def _draw(self, run: Run, step: int, units: np.ndarray) -> UnitBatch:
        return draw_batch(
            run.images,
            torch.from_numpy(units),
            self.config.draws,
            run.draws_key(self.name, step),
            step,
            run.world.device,
            self.config.label_dropout,
            run.config.data.classes,
            self.variety,
        )

    def _unit_losses(self, run: Run, denoiser: Denoiser, batch: "UnitBatch") -> Tensor:
        """Return the loss per unit [B], the mean over its K draws."""
        bf16 = run.config.compute.precision == "bf16"
        images, noise = batch.images, batch.noise
        if run.config.compute.memory_format == "channels_last":
            images, noise = (t.contiguous(memory_format=torch.channels_last) for t in (images, noise))
        sigma = noise_level(batch.level, self.config.p_mean, self.config.p_std)
        with torch.autocast(run.world.device.type, torch.bfloat16, enabled=bf16):
            losses = edm_loss(denoiser, images, batch.labels, sigma, noise)
        return losses.view(-1, self.config.draws).mean(1)

    def rehearse(self, run: Run, state: State) -> str | None:
        self.begin(run, state)
        total, seen = self.clipped_sum(run, state, 0, np.arange(run.config.compute.microbatch))
        for part in seen:
            if not bool(part.losses.isfinite().all() and part.norms.isfinite().all()):
                return (
                    "the loss or gradient on dummy images is not finite: change private.p_mean, private.p_std or "
                    "private.sigma_data"
                )
        self.update(state, 0, total, bytes(KEY_BYTES))
        return spoilt(state, "a lower private.learning_rate or clip_norm, or a higher sample_rate")

    def sync(self, run: Run, state: State) -> None:
        """Raise WorldError unless all ranks, having made the same updates, have the same weights to the bit."""
        run.world.require_equal("the weights", weights_digest(state.weights))
