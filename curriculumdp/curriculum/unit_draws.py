"""What a unit's K draws are made of beyond their noise: which images, how moved, which noise levels. PRIVATE.

All of it is a function of (key, step, unit, draw) and of what the unit itself owns (design D1), and leaves each single
draw's distribution as it is: only a unit's K draws, or a step's units, repeat each other less.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from curriculumdp.privacy.streams import uniforms, unit_words

# Philox keys of their own, cut from the 32 bytes of the draws' key, whose first 8 are those of `batch`.
MOVE_KEY, SHIFT_KEY = slice(8, 16), slice(16, 24)
# 2³² over the golden ratio. The multiples of the ratio fill [0, 1) evenly along any evenly spaced places, so units
# that are sorted by class, or whose classes take turns, are spread within each class too.
GOLDEN = 0x9E3779B9
WORD = 2**32
# The least uniform of `streams.uniforms`: normals stay within 6.4, however many strata there are.
LEAST = 2.0**-33
NONE = 2**62


@dataclass(frozen=True)
class Variety:
    """How a unit's draws differ, PUBLIC: noise levels spread evenly; mirrored by chance; moved by up to `shift` px."""

    spread: bool = False
    flip: bool = False
    shift: int = 0


def distinct_picks(uniform: Tensor, counts: Tensor) -> Tensor:
    """Return which of its images each draw of a unit shows: int64 [B, K], draw by draw without replacement.

    uniform float64 [B, K] in (0, 1); counts int64 [B] (0 counts as 1). Of n ≥ K images a unit shows K distinct ones; of
    n < K, each one floor(K/n) or ceil(K/n) times. Each draw by itself is uniform over the n, so the mean over a unit's
    draws stays an unbiased mean over its images.
    """
    owned = counts.clamp(min=1)
    picks = torch.empty(uniform.shape, dtype=torch.int64)
    taken = picks[:, :0]  # a round's picks so far, ascending, then NONE
    for draw in range(picks.shape[1]):
        turn = draw % owned  # a new round begins when all images had their turn
        taken = torch.where((turn == 0)[:, None], NONE, taken)
        left = owned - turn
        rank = torch.minimum((uniform[:, draw] * left).long(), left - 1)
        # The image of that rank among those left follows every taken one with no more of those left before it.
        passed = (taken - torch.arange(draw) <= rank[:, None]).sum(1)
        picks[:, draw] = rank + passed
        taken = torch.cat([taken, picks[:, draw, None]], 1).sort(1).values
    return picks


def spread_levels(words: Tensor, units: Tensor, key: bytes, step: int) -> Tensor:
    """Return standard normals fp32 [B, K] whose quantiles are spread over a unit's draws and over a step's units.

    words int64 [B, K], random, which deal the K strata of equal probability to a unit's draws; units int64 [B]. Within
    a stratum a unit is at its place's multiple of the golden ratio, plus a shift that all units share and that
    each stratum and step has of its own: so each level by itself is a standard normal.
    """
    draws = words.shape[1]
    stratum = words.argsort(dim=1, stable=True)
    shift = unit_words(key[SHIFT_KEY], step, torch.zeros(1, dtype=torch.int64), draws, 1)[0, :, 0]
    within = uniforms((units[:, None] * GOLDEN + shift) % WORD).gather(1, stratum)
    quantile = (stratum + within) / draws
    return torch.special.ndtri(quantile.clamp(LEAST, 1 - LEAST)).float()


def moves(
    units: Tensor, draws: int, key: bytes, step: int, variety: Variety
) -> tuple[Tensor, Tensor, Tensor]:
    """Return per draw whether it is mirrored, bool [B·K], and how far it is moved down and right, int64 [B·K]."""
    words = unit_words(key[MOVE_KEY], step, units, draws, 3).flatten(0, 1)
    mirrored = (words[:, 0] % 2 == 1) & variety.flip
    width = 2 * variety.shift + 1
    down, right = ((uniforms(words[:, 1:]) * width).long() - variety.shift).unbind(1)
    return mirrored, down, right


def moved(images: Tensor, mirrored: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return `images` [N, C, H, W] mirrored left to right where asked, then moved; edge pixels fill what moves in."""
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right[:, None]).clamp(0, width - 1)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    place = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None]
    return images.flatten(2).gather(2, place.expand(-1, images.shape[1], -1)).view_as(images)
