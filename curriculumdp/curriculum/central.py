"""The central phase: central images, noisy aggregates of random subsets of the sensitive set (DP-FETA, Li et al. 2025).

A query takes a fresh Poisson sample of units. Each unit contributes ONE vector that covers all classes and is clipped
as a whole, so a query is one subsampled Gaussian event however many classes there are (design §3). Rank 0 computes
the sum; the noise is added once. Everything after the noise is post-processing.
"""

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from curriculumdp.clipping.clip import add_clipped_rows
from curriculumdp.config.data_section import DataConfig
from curriculumdp.config.sections import CentralConfig
from curriculumdp.curriculum.run import Run
from curriculumdp.curriculum.state import CentralImages, State
from curriculumdp.data.images import ImageSet
from curriculumdp.privacy.grid_noise import from_grid
from curriculumdp.privacy.sampling import poisson_rows

UNITS_AT_ONCE = 128


@dataclass(frozen=True)
class CentralQuery:
    """The public parameters of a central query; `clip_norm` bounds the L2 norm of one unit's vector."""

    statistic: str
    size: int
    channels: int
    classes: int
    bins: int
    clip_norm: float
    count_weight: float
    denominators: tuple[float, ...]
    count_floor: float

    @property
    def pixels(self) -> int:
        return self.channels * self.size * self.size


def clip_norm_of(config: CentralConfig, data: DataConfig) -> float:
    """Return C_c: the config's value, or else the largest L2 norm that the pixels of one image can have."""
    widest = sqrt(data.channels * config.size**2) * (1.0 if config.statistic == "mode" else 0.5)
    return config.clip_norm or widest


def count_weight_of(config: CentralConfig, data: DataConfig) -> float:
    """Return the weight of a noisy count per class: the config's value, or else 1 where no class counts are public.

    Without counts a class's sum is divided by units/classes, which makes rare classes grey and common ones glaring.
    """
    counted = config.statistic == "mean" and data.class_counts is None
    return float(counted) if config.count_weight is None else config.count_weight


def unit_vectors(query: CentralQuery, images: ImageSet, units: Tensor) -> Tensor:
    """Return each unit's contribution to a query, before clipping: float64 [len(units), d]. PRIVATE.

    mean: for each class k the block (1/n_u) Σ (down-sampled image − ½) over the unit's images of class k, then, if
    counts are queried too, the coordinates a·n_{u,k}/n_u. mode: the mean over the unit's images of one-hots over
    (class, channel, pixel, bin). A unit without images contributes zeros.
    """
    owners, rows = images.rows_of(units)
    pixels = torch.from_numpy(images.images[rows]).to(torch.float64) / 255
    labels = torch.from_numpy(images.labels[rows])
    small = F.adaptive_avg_pool2d(pixels, query.size).flatten(1)
    weight = 1.0 / torch.from_numpy(images.counts[units.numpy()])[owners].to(torch.float64)
    if query.statistic == "mode":
        return _histogram_vectors(query, small, labels, owners, weight, len(units))
    blocks = torch.zeros(len(units), query.classes, query.pixels, dtype=torch.float64)
    blocks.index_put_((owners, labels), (small - 0.5) * weight[:, None], accumulate=True)
    if query.count_weight == 0:
        return blocks.flatten(1)
    counts = torch.zeros(len(units), query.classes, dtype=torch.float64)
    counts.index_put_((owners, labels), query.count_weight * weight, accumulate=True)
    return torch.cat([blocks.flatten(1), counts], dim=1)


def _histogram_vectors(
    query: CentralQuery, small: Tensor, labels: Tensor, owners: Tensor, weight: Tensor, units: int
) -> Tensor:
    bins = (small * query.bins).long().clamp_(max=query.bins - 1)
    cells = torch.arange(query.pixels) * query.bins + bins
    columns = labels[:, None] * (query.pixels * query.bins) + cells
    vectors = torch.zeros(units, query.classes * query.pixels * query.bins, dtype=torch.float64)
    return vectors.index_put_(
        (owners[:, None].expand_as(columns), columns), weight[:, None].expand_as(small), accumulate=True
    )


def query_sum(query: CentralQuery, images: ImageSet, units: Tensor) -> Tensor:
    """Return the sum of the sampled units' clipped vectors on the grid, before noise: int64 [d]. PRIVATE."""
    total = unit_vectors(query, images, units[:0]).sum(0).to(torch.int64)
    for part in units.split(UNITS_AT_ONCE):
        vectors = unit_vectors(query, images, part)
        present = torch.from_numpy(images.counts[part.numpy()] > 0)
        add_clipped_rows(vectors, total, query.clip_norm, present)
    return total


def images_of_sum(query: CentralQuery, noisy: Tensor, size: int, median: int) -> Tensor:
    """Turn a noisy sum, int64 [d], into central images, uint8 [classes, C, size, size]. PUBLIC.

    The denominator is a public count or the noisy one, floored at a public value; never the realised count.
    """
    values = from_grid(noisy, query.clip_norm)
    if query.statistic == "mode":
        cells = values.view(query.classes, query.pixels, query.bins)
        small = (cells.argmax(-1).to(torch.float64) + 0.5) / query.bins
    else:
        split = query.classes * query.pixels
        blocks, counts = values[:split].view(query.classes, -1), values[split:]
        if query.count_weight:
            denominators = (counts / query.count_weight).clamp(min=query.count_floor)
        else:
            denominators = torch.tensor(query.denominators, dtype=torch.float64).clamp(min=query.count_floor)
        small = blocks / denominators[:, None] + 0.5
    small = small.clamp(0, 1).view(query.classes, query.channels, query.size, query.size)
    large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return (_median(large, median) * 255).round().to(torch.uint8)


def _median(images: Tensor, width: int) -> Tensor:
    """Replace each pixel by the median of a width×width window around it, with replicated borders."""
    pad = width // 2
    windows = F.pad(images, (pad,) * 4, mode="replicate").unfold(2, width, 1).unfold(3, width, 1)
    return windows.flatten(-2).median(-1).values


class CentralPhase:
    """The central phase: one query per step, whose images are appended to `state.central`."""

    name = "central"

    def __init__(self, run: Run) -> None:
        config, data = run.config.central, run.config.data
        assert config is not None
        self.config, self.size = config, data.size
        self.steps = config.queries
        planned = run.plan.phase(self.name).event
        assert planned is not None
        self.event = planned
        counts = data.class_counts or (data.units / data.classes,) * data.classes
        self.query = CentralQuery(
            config.statistic,
            config.size,
            data.channels,
            data.classes,
            config.bins,
            clip_norm_of(config, data),
            count_weight_of(config, data),
            tuple(config.sample_rate * count for count in counts),
            config.count_floor,
        )

    def begin(self, run: Run, state: State) -> None:
        empty = state.central
        state.central = CentralImages(empty.images[:0], empty.labels[:0])

    def step(self, run: Run, state: State, step: int) -> dict[str, float]:
        units = poisson_rows(run.rows_key(self.name, step), run.config.data.units, self.event.sample_rate)
        chosen = torch.from_numpy(units) if run.world.is_main else torch.zeros(0, dtype=torch.int64)
        mine = query_sum(self.query, run.images, chosen).to(run.world.device)
        noisy = run.noisy_sum(self.event, step, self.query.clip_norm, mine)
        images = images_of_sum(self.query, noisy.cpu(), self.size, self.config.median)
        state.central = CentralImages(
            torch.cat([state.central.images, images]),
            torch.cat([state.central.labels, torch.arange(self.query.classes)]),
        )
        return {"units": float(len(units))}

    def rehearse(self, run: Run, state: State) -> str | None:
        units = torch.arange(min(UNITS_AT_ONCE, run.config.data.units))
        norms = torch.linalg.vector_norm(unit_vectors(self.query, run.images, units[:1]), dim=1)
        if not bool(norms.isfinite().all()):
            return "a unit's vector is not finite and would be excluded: lower central.count_weight"
        images_of_sum(self.query, query_sum(self.query, run.images, units), self.size, self.config.median)
        return None

    def sync(self, run: Run, state: State) -> None:
        """Do nothing: every rank has added the same noise to the same sum."""
