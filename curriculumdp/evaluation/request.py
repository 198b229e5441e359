"""What to evaluate a release with, and the numbers that a full and a quick evaluation take by default."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from curriculumdp.evaluation.released import evaluation_device
from curriculumdp.evaluation.utility import chosen_classifiers

# Synthetic images per set, number of sets, classifiers (None: those that the device trains in minutes).
FULL: tuple[int, int, str | None] = (2000, 3, None)
QUICK: tuple[int, int, str | None] = (500, 1, "mlp")


@dataclass(frozen=True)
class Request:
    """What to evaluate a release with. Sets are named as for `load_set`; the training set is PRIVATE.

    features: a PUBLIC labelled set to train the feature network on; None: train on one half of the real set and
    compare with the other. inception: a file of PUBLIC Inception weights to use as the feature network instead; the
    comparison is then with the complete real set. public_real: the real set, and what is computed from it, is public.
    csv, train_csv: the tables of `real` and `train`, if they are folders labelled by one. allow_training_images: go on
    with a test set that the release was trained on. quick: stated in the record; the smaller numbers are the caller's.
    """

    real: str
    count: int
    seeds: int
    classifiers: tuple[str, ...]
    device: torch.device
    train: str | None = None
    features: str | None = None
    public_real: bool = False
    inception: Path | None = None
    csv: Path | None = None
    train_csv: Path | None = None
    allow_training_images: bool = False
    quick: bool = False

    @property
    def real_is_public(self) -> bool:
        return self.public_real or self.real == "digits"  # part of scikit-learn

    @property
    def figures_are_public(self) -> bool:
        """Return whether metrics against the real set are public.

        They are not if the feature network, on which all of them depend, is trained on the training set.
        """
        return self.real_is_public and (self.features is None or self.features != self.train)


def requested(asked: Mapping[str, Any]) -> Request:
    """Return the request of a command line's options by name, None where one is left out."""
    device = evaluation_device(asked["device"])
    count, seeds, classifiers = QUICK if asked["quick"] else FULL
    names = (
        "train",
        "features",
        "public_real",
        "inception",
        "csv",
        "train_csv",
        "allow_training_images",
        "quick",
    )
    return Request(
        real=asked["real"],
        count=count if asked["num"] is None else asked["num"],
        seeds=seeds if asked["seeds"] is None else asked["seeds"],
        classifiers=chosen_classifiers(asked["classifiers"] or classifiers, device),
        device=device,
        **{name: asked[name] for name in names},
    )
