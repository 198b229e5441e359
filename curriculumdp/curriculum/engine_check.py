"""The engine of DP-SGD, with the run's own network and device, against autograd on a batch of one. PUBLIC.

It sees dummy images alone, so its figures say nothing about anybody.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from curriculumdp.config.config import Config
from curriculumdp.curriculum.batch import UnitBatch
from curriculumdp.curriculum.dry_step import dummy_run
from curriculumdp.curriculum.initial import initial_state
from curriculumdp.curriculum.private import PrivatePhase
from curriculumdp.curriculum.run import Run
from curriculumdp.diffusion.denoiser import Denoiser
from curriculumdp.diffusion.networks import UNet2DModel
from curriculumdp.privacy.grid_noise import from_grid
from dpkernels.grid import AIM, GRID

# Of a microbatch's units: autograd takes a pass for each.
MOST_UNITS = 16
# fp32's own error is below 1e-5 (tests/clipping); a wrong layer's is of the order of 1.
FP32_ERROR = 1e-3
# In bf16 the truth is fp32, and the engine may be off by this many times what autograd's bf16 is off (tests/clipping).
BF16_RATIO = 2.0


@dataclass(frozen=True)
class EngineCheck:
    """error: of the clipped sum or of the worst unit's norm, relative; allowed: max error; repeats: to the bit."""

    units: int
    error: float
    allowed: float
    repeats: bool


def check_engine(config: Config, device: torch.device) -> EngineCheck:
    """Sum a microbatch of dummy images twice by the run's engine, and once by autograd, unit by unit.

    The sum and the norms together determine that each unit's gradient is its own: a unit is clipped by its norm, and
    what is clipped adds up. Raises whatever building or running the network does.
    """
    run, state = dummy_run(config, device), initial_state(config, device)
    phase = PrivatePhase(run)
    rows = np.arange(min(config.compute.microbatch, MOST_UNITS))
    total, seen = phase.clipped_sum(run, state, 0, rows)
    again, _ = phase.clipped_sum(run, state, 0, rows)
    ours = from_grid(total, config.private.clip_norm), seen[0].norms[: len(rows)]
    truth = _by_autograd(_in(run, "fp32"), state.net, rows)
    allowed = FP32_ERROR
    if config.compute.precision == "bf16":
        allowed = max(allowed, BF16_RATIO * _error(_by_autograd(run, state.net, rows), truth))
    allowed += _rounding(config.private.clip_norm, len(rows), truth[0])
    return EngineCheck(len(rows), _error(ours, truth), allowed, torch.equal(total, again))


def _rounding(clip_norm: float, units: int, total: Tensor) -> float:
    """Return the max relative error that the grid adds to a sum: it matters where clip_norm is far above all norms."""
    return float(units * total.numel() ** 0.5 / 2 * clip_norm / GRID / total.norm())


def _in(run: Run, precision: str) -> Run:
    compute = run.config.compute.model_copy(update={"precision": precision})
    return replace(run, config=run.config.model_copy(update={"compute": compute}))


def _error(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> float:
    """Return the larger of the sums' relative error and the worst norm's; NaN counts as infinite."""
    (total, norms), (true_total, true_norms) = found, truth
    errors = torch.stack(
        [
            (total.double() - true_total).norm() / true_total.norm(),
            ((norms.double() - true_norms) / true_norms).abs().max(),
        ]
    )
    return float(errors.nan_to_num(nan=float("inf")).max())


def _by_autograd(run: Run, net: UNet2DModel, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return (sum of clipped gradients float64 [P], norms float64 [B]) of the units `rows`, each a batch of its own."""
    phase = PrivatePhase(run)
    denoiser = Denoiser(net, phase.config.sigma_data)
    batch, weights = phase._draw(run, 0, rows), list(net.parameters())
    total, norms = torch.zeros((), dtype=torch.float64, device=run.world.device), []
    for unit in range(len(rows)):
        loss = phase._unit_losses(run, denoiser, _alone(batch, unit, phase.config.draws)).sum()
        parts = torch.autograd.grad(loss, weights, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in parts]).double()
        norms.append(gradient.norm())
        total = total + gradient * (phase.config.clip_norm * AIM / norms[-1]).clamp(max=1.0)
    return total, torch.stack(norms)


def _alone(batch: UnitBatch, unit: int, draws: int) -> UnitBatch:
    """Return the batch of one unit, of a batch with `draws` rows per unit."""
    own = {
        field.name: getattr(batch, field.name)[unit * draws : (unit + 1) * draws] for field in fields(batch)
    }
    return UnitBatch(**own | {"present": batch.present[unit : unit + 1]})
