"""Classifier-free guidance (Ho and Salimans 2022): sampling that moves away from what the null class gives."""

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn


class Guided(nn.Module):
    """A network whose output is F(∅) + w·(F(label) − F(∅)); w = 1 is the network itself, a larger w is guidance.

    Stands for a `UNet2DModel` in `sample_images`, at two evaluations per step. `null_class` is the label ∅, which must
    have been trained.
    """

    def __init__(self, net: UNet2DModel, strength: float, null_class: int) -> None:
        super().__init__()
        self.net, self.strength, self.null_class = net, strength, null_class

    @property
    def config(self) -> Any:
        return self.net.config

    @property
    def device(self) -> torch.device:
        return self.net.device

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Return the guided output, of x's shape [N, C, H, W], in a tuple as diffusers does."""
        none = torch.full_like(class_labels, self.null_class)
        given, free = (
            self.net(x, t, class_labels=labels, return_dict=False)[0] for labels in (class_labels, none)
        )
        return (free + self.strength * (given - free),)
