"""Opacus's private steps, as its own optimizer and loss wrapper do them.

Its convolution gradients are wrong on channels_last activations, which `UNet2DModel`'s attention gives in every
layout (reference: Opacus 1.6 `unfold2d` assumes NCHW strides); `.contiguous()` before it makes them right, and every
figure here is with that patch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.step_nets import CLIP_NORM, Microbatch

StepAndGradient = tuple[Callable[[], None], Callable[[], Tensor]]


def _patch_unfold() -> None:
    """Opacus's convolutions see contiguous activations from now on."""
    from opacus.grad_sample import conv

    original = conv.unfold2d
    if getattr(original, "contiguous", False):
        return

    def unfold2d(activations: Tensor, **geometry: Any) -> Tensor:
        return original(activations.contiguous(), **geometry)

    unfold2d.contiguous = True
    conv.unfold2d = unfold2d


def opacus_hooks(batch: Microbatch, mode: str = "hooks") -> StepAndGradient:
    """(step, gradient) by stored per-sample gradients; they are averaged over a unit's draws before clipping.

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
            p.grad_sample = None  # as the optimizer's zero_grad: not kept into the next forward

    return step, lambda: torch.cat([p.summed_grad.flatten() for p in batch.net.parameters()])


def opacus_ghost(batch: Microbatch, norms_of_factors: bool = True) -> StepAndGradient:
    """(step, gradient) by two backwards: norms, then the weighted loss.

    With K draws each draw is clipped to C/K by itself: Opacus knows samples, not units.
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
