"""Opacus's private steps, done by its own optimizers and loss wrapper.

Opacus's convolution gradients are wrong on channels_last activations, which `UNet2DModel`'s attention returns in every
layout (`unfold2d` of Opacus 1.6 assumes NCHW strides). Calling `.contiguous()` before it fixes them; every number here
is with that patch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.step_nets import CLIP_NORM, Microbatch

StepAndGradient = tuple[Callable[[], None], Callable[[], Tensor]]


def _patch_unfold() -> None:
    """Make Opacus's convolutions see contiguous activations, for the rest of the process."""
    from opacus.grad_sample import conv

    original = conv.unfold2d
    if getattr(original, "contiguous", False):
        return

    def unfold2d(activations: Tensor, **geometry: Any) -> Tensor:
        return original(activations.contiguous(), **geometry)

    unfold2d.contiguous = True
    conv.unfold2d = unfold2d


def opacus_hooks(batch: Microbatch, mode: str = "hooks") -> StepAndGradient:
    """Return (step, gradient) with stored per-sample gradients, averaged over a unit's draws before clipping.

    mode: Opacus's `grad_sample_mode`, one of hooks, functorch, ew.
    """
    from opacus.grad_sample import wrap_model
    from opacus.optimizers import DPOptimizer

    _patch_unfold()
    module = wrap_model(batch.net, grad_sample_mode=mode, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(batch.net.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=batch.units,
        loss_reduction="sum",
    )

    def step() -> None:
        for p in batch.net.parameters():
            p.grad = p.grad_sample = p.summed_grad = None
        batch.losses(module).sum().backward()
        if batch.draws > 1:
            for p in batch.net.parameters():
                p.grad_sample = p.grad_sample.unflatten(0, (batch.units, batch.draws)).mean(1)
        optimizer.clip_and_accumulate()
        for p in batch.net.parameters():
            p.grad_sample = None  # as the optimizer's zero_grad does: not kept for the next forward

    return step, lambda: torch.cat([p.summed_grad.flatten() for p in batch.net.parameters()])


def opacus_ghost(batch: Microbatch, norms_of_factors: bool = True) -> StepAndGradient:
    """Return (step, gradient) with two backwards: one for the norms, one of the weighted loss.

    With K draws each draw is clipped to C/K separately: Opacus knows samples, not units.
    """
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    _patch_unfold()
    module = GradSampleModuleFastGradientClipping(
        batch.net,
        loss_reduction="sum",
        max_grad_norm=CLIP_NORM / batch.draws,
        use_ghost_clipping=norms_of_factors,
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(batch.net.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP_NORM / batch.draws,
        expected_batch_size=batch.units * batch.draws,
        loss_reduction="sum",
    )

    def step() -> None:
        optimizer.zero_grad()
        losses = batch.losses(module) / batch.draws
        DPTensorFastGradientClipping(module, optimizer, losses, "sum").backward()

    return step, lambda: torch.cat([p.grad.flatten() for p in batch.net.parameters()])
