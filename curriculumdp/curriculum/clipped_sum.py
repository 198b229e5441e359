"""A microbatch added to a step's exact sum, eagerly or as one CUDA graph, and its metrics over all ranks.

Its shapes never change (design D2), and on a GPU the host reads no value in it. So it is captured once, on static
buffers, and replayed: hundreds of kernel launches, which dominate on small images, become one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curriculumdp.clipping.cuda_graph import Captured
from curriculumdp.clipping.per_unit import PerUnitGradients
from curriculumdp.curriculum.batch import UnitBatch


@dataclass(frozen=True)
class Seen:
    """PRIVATE metrics of a microbatch, not part of the sum: losses and norms [B], present bool [B], excluded []."""

    losses: Tensor
    norms: Tensor
    present: Tensor
    excluded: Tensor


class Microbatch:
    """Adds the clipped gradients of one microbatch after another to `total`. PRIVATE.

    total: int64 [P], always the same buffer; the caller zeroes it before a step and copies the sum afterwards.
    """

    def __init__(
        self,
        engine: PerUnitGradients,
        unit_losses: Callable[[UnitBatch], Tensor],
        clip_norm: float,
        total: Tensor,
        *,
        capture: bool,
    ) -> None:
        self.engine, self.total = engine, total
        self._unit_losses, self._clip_norm, self._capture = unit_losses, clip_norm, capture
        self._captured: Captured | None = None

    def add(self, batch: UnitBatch) -> Seen:
        """Add `batch` to `total`; if a CUDA graph is used, the first call captures it and every call replays it."""
        if not self._capture:
            return Seen(**self._run(batch.tensors()))
        if self._captured is None:
            before = self.total.clone()
            self._captured = Captured(self._run, batch.tensors())
            self.total.copy_(before)  # the warm-up before capture added to it
        return Seen(**self._captured(batch.tensors()))

    def _run(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = UnitBatch(**tensors)
        losses = self.engine.backward(lambda: self._unit_losses(batch))
        result = self.engine.add_clipped_grads(self.total, self._clip_norm, batch.present)
        return {
            "losses": losses,
            "norms": result.norms,
            "present": batch.present,
            "excluded": result.excluded,
        }


def figures_table(seen: list[Seen], rank: int, ranks: int, microbatches: int, units: int) -> Tensor:
    """Return this rank's losses, norms, whether both count, exclusions: float64 [microbatches, 4, units]. PRIVATE.

    `seen` holds the microbatches rank, rank + ranks, …. Units that are absent or not finite do not count: their values
    are 0, since a NaN would spoil the sum over the ranks.
    """
    device = seen[0].losses.device if seen else None
    table = torch.zeros((microbatches, 4, units), dtype=torch.float64, device=device)
    for row, part in zip(table[rank::ranks], seen, strict=True):
        counted = part.present & part.losses.isfinite() & part.norms.isfinite()
        row[0] = torch.where(counted, part.losses.double(), 0.0)
        row[1] = torch.where(counted, part.norms.double(), 0.0)
        row[2], row[3, 0] = counted, part.excluded
    return table


def figures_of(table: Tensor) -> dict[str, float]:
    """Return a step's metrics: units excluded as not finite, and the others' mean loss and median norm. PRIVATE."""
    losses, norms, counted, excluded = table.transpose(0, 1).flatten(1).cpu()
    found = {"excluded": float(excluded.sum())}
    if not bool(counted.any()):
        return found
    kept = counted > 0
    return found | {"loss": float(losses[kept].mean()), "norm": float(norms[kept].median())}
