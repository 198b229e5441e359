"""Checks that a network still gives finite outputs, made before a phase spends and before a checkpoint is saved.

They look at the weights and the EMA alone, which come from noisy sums, so stopping a run is post-processing. Losses,
norms and the number of excluded units are PRIVATE and must not stop a run: one person's images could then end it, and
the end would reveal them.
"""

import shlex

import torch
from torch.func import functional_call

from curriculumdp.curriculum.state import State, module_tensors
from curriculumdp.diffusion.sample import SIGMA_MAX, SIGMA_MIN
from curriculumdp.errors import UserError

# Noise levels at which the network is evaluated: sampling covers the range from the first to the last.
LEVELS = (SIGMA_MIN, 0.05, 1.0, SIGMA_MAX)


class TrainingError(UserError):
    """A ruined network: resuming its training is pointless. The message is one line."""


def fault_of(state: State) -> str | None:
    """Return what is not finite, or None: the weights, their average, or the output of either on public noise."""
    for name, flat in (("the weights", state.weights), ("the weights' moving average", state.ema)):
        if not bool(flat.isfinite().all()):
            return f"{name} hold NaN or infinity"
        if not bool(_answers(state, flat).isfinite().all()):
            return f"the network with {name} outputs NaN or infinity"
    return None


def spoilt(state: State, instead: str) -> str | None:
    """Return what is not finite in the state after a step on dummy images and what to use instead, or None."""
    if bool(state.exp_avg.isfinite().all() and state.exp_avg_sq.isfinite().all()):
        fault = fault_of(state)
    else:
        fault = "Adam's moments hold NaN or infinity"
    return fault and f"after one step on dummy images {fault}: use {instead}"


@torch.no_grad()
def _answers(state: State, flat: torch.Tensor) -> torch.Tensor:
    """Return the network's output on public noise, one image per level of LEVELS, with `flat` as its weights."""
    config, device = state.net.config, flat.device
    shape = (len(LEVELS), config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    times = torch.tensor(LEVELS, device=device).log() / 4
    labels = torch.arange(len(LEVELS), device=device) % config.num_class_embeds
    given = {"class_labels": labels, "return_dict": False}
    answer: torch.Tensor = functional_call(state.net, module_tensors(state.net, flat), (noise, times), given)[
        0
    ]
    return answer


def require_finite(state: State, phase: str) -> None:
    """Raise TrainingError before `phase` spends on weights that an earlier phase has ruined."""
    if (fault := fault_of(state)) is not None:
        raise TrainingError(
            f"{fault} before the {phase} phase, which was not started: start a new run in another run_dir with a lower "
            "warmup.learning_rate, or another init_from"
        )


def require_sound(state: State, phase: str, run_dir: str) -> None:
    """Raise TrainingError if `phase` has ruined the network, so that no checkpoint of it is saved."""
    if (fault := fault_of(state)) is not None:
        raise ruined(fault, state.step, phase, run_dir)


def ruined(fault: str, step: int, phase: str, run_dir: str) -> TrainingError:
    """Return the error that ends a run whose network is ruined; units excluded from a sum never cause it."""
    return TrainingError(
        f"the network was ruined by step {step} of the {phase} phase: {fault} (a learning rate that is too high does "
        "this; units excluded from sums do not). Nothing more is charged and the last good checkpoint is kept: export "
        f"it with launch/export.py {shlex.quote(run_dir)} --out DIR --end-run, or start a new run in another run_dir "
        f"with a lower {phase}.learning_rate"
    )
