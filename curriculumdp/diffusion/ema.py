"""The moving average of the weights: what is released."""

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(average: Tensor, weights: Tensor, decay: float) -> None:
    """Moves `average` in place to decay·average + (1 − decay)·weights; both of one shape and dtype."""
    average.lerp_(weights, 1.0 - decay)
