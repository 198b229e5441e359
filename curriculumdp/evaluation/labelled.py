"""Labelled images that evaluation compares: synthetic ones, real held-out ones, the training set."""

import hashlib
from dataclasses import dataclass

import numpy as np

from curriculumdp.errors import UserError

# Not the config's seed: which half of a real set trains the feature network must not differ between runs.
HALVES_SEED = 0


class EvaluationError(UserError):
    """What cannot be evaluated, reported or compared; the message is one line."""


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Images uint8 [N, C, H, W] and their labels int64 [N]; `origin` says in words, without a path, whose.

    As private as where the images come from.
    """

    images: np.ndarray
    labels: np.ndarray
    origin: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "LabelledSet":
        """The images at `rows`, int64 [M]."""
        return LabelledSet(self.images[rows], self.labels[rows], self.origin)

    def at_most(self, count: int, seed: int = HALVES_SEED) -> "LabelledSet":
        """`count` images drawn without replacement, or all of them where there are fewer."""
        if len(self) <= count:
            return self
        return self.take(np.random.default_rng(seed).permutation(len(self))[:count])

    def halves(self) -> tuple["LabelledSet", "LabelledSet"]:
        """Two disjoint halves, the same ones in every evaluation of this set."""
        order = np.random.default_rng(HALVES_SEED).permutation(len(self))
        return self.take(order[: len(self) // 2]), self.take(order[len(self) // 2 :])

    def pixels(self) -> np.ndarray:
        """float32 [N, C·H·W] in [0, 1]."""
        return self.images.reshape(len(self), -1).astype(np.float32) / 255

    def sha256(self) -> str:
        """A digest of images and labels in their order. PRIVATE where the images are."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()
