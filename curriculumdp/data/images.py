"""The images of a run and the units (people) that own them. PRIVATE, except the number of units."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from curriculumdp.errors import UserError


class DataError(UserError):
    """Data that do not match the config or cannot be read. One line, whatever characters a file name contains."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else " " for letter in message))


class BadImage(DataError):
    """One image that cannot be used: its name, and the reason with the fix."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, their labels and their owners. A unit is an index in 0..unit_count-1; a unit may own no image.

    images uint8 [N, C, H, W], labels int64 [N], units int64 [N] (the owner of each image). Derived: counts
    int64 [unit_count]; order int64 [N] and offsets int64 [unit_count + 1], so that unit u owns the images
    order[offsets[u]:offsets[u + 1]], in the order of the set. What a unit owns, and in which order, does not
    depend on any other unit. class_names: PUBLIC, in label order, None for numbers that nobody named. Raises DataError
    where shapes, dtypes or owners are inconsistent.
    """

    images: np.ndarray
    labels: np.ndarray
    units: np.ndarray
    unit_count: int
    class_names: tuple[str, ...] | None = None
    counts: np.ndarray = field(init=False)
    order: np.ndarray = field(init=False)
    offsets: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._check()
        counts = np.bincount(self.units, minlength=self.unit_count).astype(np.int64)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "order", np.argsort(self.units, kind="stable"))
        object.__setattr__(self, "offsets", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def _check(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(f"images must be uint8 [N, C, H, W], not {self.images.dtype} {self.images.shape}")
        for name in ("labels", "units"):
            array = getattr(self, name)
            if array.dtype != np.int64 or array.shape != (len(self.images),):
                raise DataError(f"{name} must be int64 [{len(self.images)}], not {array.dtype} {array.shape}")
        if len(self.labels) and self.labels.min() < 0:
            raise DataError(f"labels must not be negative but the smallest is {self.labels.min()}")
        if len(self.units) and not 0 <= self.units.min() <= self.units.max() < self.unit_count:
            raise DataError(
                f"units must be in 0..{self.unit_count - 1} but range from {self.units.min()} to "
                f"{self.units.max()}"
            )

    def rows_of(self, units: Tensor) -> tuple[Tensor, np.ndarray]:
        """Return (owners, rows) of all images of the given units (int64 [B] on the CPU), in the units' order.

        owners int64 [M] are indices into `units`, rows int64 [M] into the set; M is the sum of the units' counts.
        """
        asked = units.numpy()
        counts = self.counts[asked]
        owners = np.repeat(np.arange(len(asked)), counts)
        first = np.cumsum(counts) - counts
        rows = self.order[np.arange(len(owners)) + (self.offsets[asked] - first)[owners]]
        return torch.from_numpy(owners), rows

    def content_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that a MAC of the content must cover, by name, contiguous: equal sets give equal bytes."""
        return {
            "images": np.ascontiguousarray(self.images),
            "labels": np.ascontiguousarray(self.labels),
            "units": np.ascontiguousarray(self.units),
            "unit_count": np.array([self.unit_count], dtype=np.int64),
        }

    def without_unit(self, unit: int) -> "ImageSet":
        """Return the zero-out neighbour: `unit` owns nothing but keeps its index."""
        kept = self.units != unit
        return ImageSet(
            self.images[kept], self.labels[kept], self.units[kept], self.unit_count, self.class_names
        )

    def with_unit(self, unit: int, images: np.ndarray, labels: np.ndarray) -> "ImageSet":
        """Return the neighbour in which `unit`, which must own nothing, owns `images` uint8 [M, C, H, W].

        labels int64 [M]. Raises DataError if the unit already owns images.
        """
        if self.counts[unit]:
            raise DataError(f"unit {unit} already owns {self.counts[unit]} images: remove them first")
        return ImageSet(
            np.concatenate([self.images, images]),
            np.concatenate([self.labels, labels]),
            np.concatenate([self.units, np.full(len(images), unit, dtype=np.int64)]),
            self.unit_count,
            self.class_names,
        )
