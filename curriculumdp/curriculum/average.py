"""The moving average of DP-SGD's weights, which is what is released: constant decay, or a power function. PUBLIC."""

import numpy as np

from curriculumdp.config.sections import PrivateConfig


def ema_decay(config: PrivateConfig, step: int) -> float:
    """Return the decay β of step `step`, from 0, in ema ← β·ema + (1 − β)·w: `ema`, or EDM2's for `ema_width`.

    The latter, β = (1 − 1/t)^(γ + 1) for t = step + 1, weights step t like t^γ (Karras et al., CVPR 2024, equation
    127): nothing is left of the weights before step 0, and the same share of every run, long or short, counts.
    """
    if config.ema_width is None:
        return config.ema
    return (1 - 1 / (step + 1)) ** (power(config.ema_width) + 1)


def power(width: float) -> float:
    """Return the γ at which t^γ over a run has the standard deviation `width`, in lengths of the run.

    width² = (γ + 1)/((γ + 2)²(γ + 3)) (Karras et al. 2024, section 3.1), solved for the largest γ; width < 0.28.
    """
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
