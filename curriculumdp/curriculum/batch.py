"""The units of a microbatch and what is drawn for each: images, noise levels, diffusion noise. PRIVATE."""

from dataclasses import dataclass, fields
from math import prod

import numpy as np
import torch
from torch import Tensor

from curriculumdp.curriculum.unit_draws import Variety, distinct_picks, moved, moves, spread_levels
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.streams import normals, uniforms, unit_words

PLAIN = Variety()
# Random words per draw, in order: which image, label dropout, noise level (two), then the diffusion noise.
HEAD_WORDS = 4


@dataclass(frozen=True)
class UnitBatch:
    """A microbatch of B units with K draws each, a unit's draws contiguous. PRIVATE.

    images: fp32 [B·K, C, H, W] in [−1, 1]; labels: int64 [B·K]; level: fp32 [B·K], standard normal; noise: like
    images, standard normal; present: bool [B], False for padding and for a unit that owns no image.
    """

    images: Tensor
    labels: Tensor
    level: Tensor
    noise: Tensor
    present: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def draw_batch(
    images: ImageSet,
    units: Tensor,
    draws: int,
    key: bytes,
    step: int,
    device: torch.device,
    label_dropout: float = 0.0,
    null_class: int = 0,
    variety: Variety = PLAIN,
) -> UnitBatch:
    """Draw images, labels and noise for a microbatch; `units` is int64 [B], −1 for padding.

    A dropped label becomes `null_class`. Everything drawn for a unit is a function of (key, step, unit, draw): its
    position in the microbatch and the other units in it change nothing (design D1). A unit's draws show distinct
    images as far as it owns them.
    """
    indices = units.clamp(min=0)
    counts = torch.from_numpy(images.counts)[indices]
    present = (units >= 0) & (counts > 0)
    shape = (len(units) * draws, *images.images.shape[1:])
    pixels = prod(images.images.shape[1:])
    words = unit_words(key, step, _sent(indices, device), draws, HEAD_WORDS + pixels + pixels % 2)
    # The words that pick an image are drawn on the CPU, where the images are: reading them from the GPU would stall it.
    head = words if words.device.type == "cpu" else unit_words(key, step, indices, draws, HEAD_WORDS)
    pick = distinct_picks(uniforms(head[..., 0]), counts)
    owned = torch.from_numpy(images.offsets)[indices][:, None] + pick
    shown = images if len(images.images) else _one_blank(images)
    rows = torch.from_numpy(shown.order)[torch.where(present[:, None], owned, 0)].flatten()
    kept = uniforms(head[..., 1]).flatten() >= label_dropout
    labels = torch.where(kept, torch.from_numpy(shown.labels)[rows], null_class)
    seen = present.repeat_interleave(draws)
    pixels_01 = _sent(torch.from_numpy(shown.images)[rows], device).float() / 255
    if variety.flip or variety.shift:
        pixels_01 = moved(pixels_01, *(_sent(m, device) for m in moves(indices, draws, key, step, variety)))
    if variety.spread:
        level = _sent(spread_levels(head[..., 3], indices, key, step), device).flatten()
    else:
        level = normals(words[..., 2:4])[..., 0].flatten()
    noise = normals(words[..., HEAD_WORDS:])[..., :pixels].reshape(shape)
    return UnitBatch(
        torch.where(_sent(seen, device)[:, None, None, None], pixels_01 * 2 - 1, 0.0),
        _sent(torch.where(seen, labels, 0), device),
        level,
        noise,
        _sent(present, device),
    )


def _one_blank(images: ImageSet) -> ImageSet:
    """Return a set of one blank image, for absent units to index when no unit owns one: such a set must train too."""
    blank, first = np.zeros((1, *images.images.shape[1:]), dtype=np.uint8), np.zeros(1, dtype=np.int64)
    return ImageSet(blank, first, first, images.unit_count)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy `tensor` to `device` without waiting for the GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
