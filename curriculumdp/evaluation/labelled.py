"""Labelled images to compare: synthetic ones, real held-out ones, the training set."""

import hashlib
from dataclasses import dataclass

import numpy as np

from curriculumdp.errors import UserError

# Fixed, not the config's seed: every run must train the feature network on the same half of a real set.
HALVES_SEED = 0


class EvaluationError(UserError):
    """Something that cannot be evaluated, reported or compared. One line."""


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Images uint8 [N, C, H, W] and their labels int64 [N]; `origin` describes their source without a path.

    As private as that source.
    """

    images: np.ndarray
    labels: np.ndarray
    origin: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "LabelledSet":
        """Return the images at `rows`, int64 [M]."""
        return LabelledSet(self.images[rows], self.labels[rows], self.origin)

    def at_most(self, count: int, seed: int = HALVES_SEED) -> "LabelledSet":
        """Return `count` images chosen at random without replacement, or all of them if there are fewer."""
        if len(self) <= count:
            return self
        return self.take(np.random.default_rng(seed).permutation(len(self))[:count])

    def halves(self) -> tuple["LabelledSet", "LabelledSet"]:
        """Return two disjoint halves, the same in every evaluation of this set."""
        order = np.random.default_rng(HALVES_SEED).permutation(len(self))
        return self.take(order[: len(self) // 2]), self.take(order[len(self) // 2 :])

    def pixels(self) -> np.ndarray:
        """Return the pixels, float32 [N, C·H·W] in [0, 1]."""
        return self.images.reshape(len(self), -1).astype(np.float32) / 255

    def sha256(self) -> str:
        """Return a digest of images and labels in their order. As private as the images."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()
