"""What training changes: weights, optimiser and EMA in flat buffers, and what the noisy sums gave to train on.

All parameters of a model lie in one flat fp32 buffer, in the order of `net.named_parameters()`; the module's
parameters are views of it. The optimiser's moments and the EMA have the same layout, so a step of Adam, a checkpoint
and a sum over ranks are each one operation on one buffer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curriculumdp.diffusion.networks import UNet2DModel
from curriculumdp.world import World


@dataclass(frozen=True)
class CentralImages:
    """Images made of noisy sums of the sensitive set: the noise has made them PUBLIC.

    images uint8 [M, C, H, W], labels int64 [M]. M may be 0 (a curriculum without the phase that makes them).
    """

    images: Tensor
    labels: Tensor


@dataclass
class State:
    """What a step changes. The buffers are fp32 [P]; `step` steps of phase number `phase` are done.

    central: the central images. embedding: the noisy sum of the frequency phase, int64 [d], d = 0 before it was
    released; frequency: the images made of it. All of these are PUBLIC.
    """

    net: UNet2DModel
    weights: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    ema: Tensor
    central: CentralImages
    embedding: Tensor
    frequency: CentralImages
    phase: int = 0
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint must hold, by name."""
        return {
            "weights": self.weights,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "ema": self.ema,
            "central_images": self.central.images,
            "central_labels": self.central.labels,
            "embedding": self.embedding,
            "frequency_images": self.frequency.images,
            "frequency_labels": self.frequency.labels,
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load a checkpoint's tensors, in place for the flat buffers, of which the network has views."""
        for name in ("weights", "exp_avg", "exp_avg_sq", "ema"):
            getattr(self, name).copy_(tensors[name])
        self.central = CentralImages(tensors["central_images"], tensors["central_labels"])
        if "embedding" in tensors:  # checkpoints of earlier versions have none
            self.embedding = tensors["embedding"]
            self.frequency = CentralImages(tensors["frequency_images"], tensors["frequency_labels"])

    def sizes(self) -> dict[str, int]:
        """Return how much there is of what grows during a run: images, and values of the embedding."""
        return {
            "central": len(self.central.labels),
            "embedding": len(self.embedding),
            "frequency": len(self.frequency.labels),
        }

    def share(self, world: World, sizes: Mapping[str, int]) -> None:
        """Copy rank 0's buffers to every rank; `sizes` are rank 0's."""
        if not world.is_main:
            self.central, self.frequency = (
                CentralImages(
                    self.central.images.new_zeros((sizes[name], *self.central.images.shape[1:])),
                    torch.zeros(sizes[name], dtype=torch.int64),
                )
                for name in ("central", "frequency")
            )
            self.embedding = torch.zeros(sizes["embedding"], dtype=torch.int64)
        for tensor in self.tensors().values():
            moved = tensor.to(world.device)
            world.broadcast_(moved)
            tensor.copy_(moved)

    def forget_moments(self) -> None:
        """Reset Adam's moments to 0 and the EMA to the weights, as every new phase does."""
        self.exp_avg.zero_()
        self.exp_avg_sq.zero_()
        self.ema.copy_(self.weights)


def flat_state(net: UNet2DModel, device: torch.device) -> State:
    """Move `net` to `device`, make its parameters views of one flat fp32 buffer, and return its untrained state."""
    net.to(device)
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    offset = 0
    for parameter in net.parameters():
        size = parameter.numel()
        parameter.data = weights[offset : offset + size].view(parameter.shape)
        offset += size
    zeros = torch.zeros_like(weights)
    config = net.config
    shape = (0, config.in_channels, config.sample_size, config.sample_size)
    none = CentralImages(torch.zeros(shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    nothing = torch.zeros(0, dtype=torch.int64)
    return State(net, weights, zeros.clone(), zeros.clone(), weights.clone(), none, nothing, none)


def module_tensors(net: UNet2DModel, flat: Tensor) -> dict[str, Tensor]:
    """Return views of `flat` in the shapes of `net`'s parameters, by name."""
    parts, offset = {}, 0
    for name, parameter in net.named_parameters():
        parts[name] = flat[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()
    return parts
