"""Whether a network still computes numbers: asked before it may spend, and before a checkpoint stands for it.

All of it looks at the weights and the EMA alone, which come from noisy sums: that a run stops is post-processing.
How many units were left out, their losses and their norms are PRIVATE and may stop nothing: one person could then
end a run, and its end would tell of them.
"""

import torch
from torch.func import functional_call

from curriculumdp.curriculum.state import State, module_tensors
from curriculumdp.diffusion.sample import SIGMA_MAX, SIGMA_MIN
from curriculumdp.errors import UserError

# Noise levels at which the network is asked: sampling passes through all between the first and the last.
LEVELS = (SIGMA_MIN, 0.05, 1.0, SIGMA_MAX)


class TrainingError(UserError):
    """Training that cannot be resumed to any use; the message is one line."""


def fault_of(state: State) -> str | None:
    """What is not finite: the weights, their average, or what a network of either answers to public noise; or None."""
    for name, flat in (("the weights", state.weights), ("the weights' moving average", state.ema)):
        if not bool(flat.isfinite().all()):
            return f"{name} hold NaN or infinity"
        if not bool(_answers(state, flat).isfinite().all()):
            return f"a network of {name} answers NaN or infinity"
    return None


@torch.no_grad()
def _answers(state: State, flat: torch.Tensor) -> torch.Tensor:
    """The network's output for public noise, one image for each of LEVELS, with `flat` for its weights."""
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
    """Raises TrainingError rather than let a phase spend on weights that an earlier one has ruined."""
    if (fault := fault_of(state)) is not None:
        raise TrainingError(
            f"{fault}, before the phase {phase}, which is not begun: begin a new run in another folder with a lower "
            "warmup.learning_rate, or another init_from"
        )


def require_sound(state: State, phase: str, run_dir: str) -> None:
    """Raises TrainingError where training in `phase` has ruined the network, so that no checkpoint is made of it."""
    if (fault := fault_of(state)) is not None:
        raise ruined(fault, state.step, phase, run_dir)


def ruined(fault: str, step: int, phase: str, run_dir: str) -> TrainingError:
    """The line in which a run ends whose network is gone, which is not that units were left out of a sum."""
    return TrainingError(
        f"the network is ruined by step {step} of the phase {phase}: {fault} (units left out of sums do not do this; a "
        "learning rate that is too high does). Nothing more is charged and the last good checkpoint stays: export it "
        f"with launch/export.py {run_dir} --end-run, or begin a new run in another run_dir with a lower "
        f"{phase}.learning_rate"
    )
