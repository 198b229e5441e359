"""EDM's preconditioned denoiser (Karras et al., NeurIPS 2022, equation 7 and table 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Standard deviation of pixels distributed uniformly over [-1, 1].
SIGMA_DATA = 3**-0.5


@dataclass(frozen=True)
class Denoiser:
    """D(x; σ, label) = c_skip·x + c_out·F(c_in·x; c_noise, label), with F a `UNet2DModel`.

    The coefficients equal those of diffusers' EDM schedulers, so a network trained under them samples in the
    stock pipeline.
    """

    net: nn.Module
    sigma_data: float = SIGMA_DATA

    def __call__(self, noisy: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Return the denoised images, of `noisy`'s shape [N, C, H, W] and dtype; sigma float [N], labels int64 [N]."""
        s, d = sigma.to(noisy.dtype).view(-1, 1, 1, 1), self.sigma_data
        total = s**2 + d**2
        c_skip, c_out, c_in = d**2 / total, s * d / total.sqrt(), total.rsqrt()
        c_noise = torch.log(sigma) / 4
        output = self.net(c_in * noisy, c_noise, class_labels=labels, return_dict=False)[0]
        return c_skip * noisy + c_out * output.to(noisy.dtype)
