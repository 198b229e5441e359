"""An evaluation of a release: utility, fidelity and, where the training set is given, memorisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curriculumdp.diffusion.pictures import image_grid
from curriculumdp.evaluation.fidelity import FeatureNetwork, fidelities, fidelity, train_features
from curriculumdp.evaluation.inception import given_inception
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet
from curriculumdp.evaluation.memorisation import Neighbours, memorisation, nearest_neighbours
from curriculumdp.evaluation.record import DISTANCES, NEIGHBOURS, UTILITY, write_record
from curriculumdp.evaluation.released import Released, draw_images, load_set
from curriculumdp.evaluation.utility import DESCRIPTIONS, accuracy, over_seeds
from curriculumdp.plots import distances_plot, png_bytes, utility_plot

SHOWN = 10  # pairs per row of neighbours.png


@dataclass(frozen=True)
class Request:
    """What to evaluate a release with. Sets are named as for `load_set`; the training set is PRIVATE.

    features: a PUBLIC labelled set to train the feature network on; None: train on one half of the real set and
    compare with the other. inception: a file of PUBLIC Inception weights to use as the feature network instead; the
    comparison is then with the complete real set. public_real: the real set, and what is computed from it, is public.
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

    @property
    def real_is_public(self) -> bool:
        return self.public_real or self.real == "digits"  # part of scikit-learn

    @property
    def figures_are_public(self) -> bool:
        """Return whether metrics against the real set are public.

        They are not if the feature network, on which all of them depend, is trained on the training set.
        """
        return self.real_is_public and (self.features is None or self.features != self.train)


@dataclass(frozen=True)
class Material:
    """An evaluation's images: `synthetic`, one set per seed; `compared`, the part of `real` used for fidelity."""

    synthetic: Sequence[LabelledSet]
    real: LabelledSet
    compared: LabelledSet
    network: FeatureNetwork


def evaluate_release(
    released: Released, request: Request, out: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate a release, write the records under `out` (see `record`) and return (public, private) metrics.

    Either is {} if there are none. Raises EvaluationError, DataError or SamplingError, one line.
    """
    if released.classes < 2:
        raise EvaluationError("the release has one class: utility and the feature network need at least two")
    if min(request.count, request.seeds) < 1:
        raise EvaluationError("the numbers of images and seeds must both be at least 1")
    if request.inception is not None and request.features is not None:
        raise EvaluationError(
            "Inception weights are given, so no feature network is trained: do not name a set for one"
        )
    real = load_set(request.real, released, "test")
    train = None if request.train is None else load_set(request.train, released, "train")
    material = _gather(released, request, real, say)
    metrics = _against_real(request, material, say)
    own: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    if train is not None:
        say("comparing with the training set (private)")
        own, pictures = _against_training(request, material, train)
    pictures[UTILITY] = utility_plot(metrics["utility"])
    public, private = (metrics, own) if request.figures_are_public else ({}, {**metrics, **own})
    write_record(out, release=released.identity(), public=public, private=private, pictures=pictures)
    return public, private


def _gather(released: Released, request: Request, real: LabelledSet, say: Callable[[str], None]) -> Material:
    """Load or sample all sets. The feature network is not trained on any image that is compared."""
    compared = real
    if request.inception is not None:
        network = given_inception(request.inception, request.device)
    elif request.features is not None:
        network = train_features(load_set(request.features, released, "train"), request.device)
    else:
        learned, compared = real.halves()
        network = train_features(replace(learned, origin=f"one half of: {real.origin}"), request.device)
    synthetic = []
    for seed in range(request.seeds):
        say(f"sampling {request.count} images, seed {seed}")
        synthetic.append(draw_images(released, request.count, seed, request.device))
    return Material(synthetic, real, compared, network)


def _against_real(request: Request, material: Material, say: Callable[[str], None]) -> dict[str, Any]:
    """Return utility and fidelity. As private as the real set."""
    real, synthetic = material.real, material.synthetic
    utility = {}
    for name in request.classifiers:
        say(f"training {name} on synthetic images")
        scores = [accuracy(name, some, real, seed, request.device) for seed, some in enumerate(synthetic)]
        utility[name] = {**over_seeds(scores), "classifier": DESCRIPTIONS[name]}
    say("comparing features")
    found = fidelities(material.network, material.compared, synthetic)
    return {
        "real": {"origin": real.origin, "images": len(real), "sha256": real.sha256()},
        "synthetic": {"images": request.count, "seeds": request.seeds},
        "utility": utility,
        "fidelity": {
            "network": material.network.facts(),
            "compared_with": len(material.compared),
            **{measure: over_seeds([row[measure] for row in found]) for measure in found[0]},
        },
    }


def _against_training(
    request: Request, material: Material, train: LabelledSet
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the training set's own scores and its nearness to the synthetic images, and plots. PRIVATE."""
    synthetic, network = material.synthetic[0], material.network
    near, held_out = nearest_neighbours(synthetic, train), nearest_neighbours(material.real, train)
    scores = {
        name: over_seeds(
            [accuracy(name, train, material.real, seed, request.device) for seed in range(request.seeds)]
        )
        for name in request.classifiers
    }
    some = train.at_most(request.count)
    metrics = {
        "reference": {
            "images": len(train),
            "utility": scores,
            "fidelity": fidelity(network, material.compared, some),
        },
        "fidelity_to_training": fidelity(network, some, synthetic),
        "memorisation": memorisation(near, held_out),
    }
    pictures = {
        DISTANCES: distances_plot(near.first, held_out.first),
        NEIGHBOURS: neighbour_picture(synthetic, train, near),
    }
    return metrics, pictures


def neighbour_picture(synthetic: LabelledSet, train: LabelledSet, found: Neighbours) -> bytes:
    """Return a PNG of synthetic images above their nearest training images. PRIVATE.

    First the synthetic images nearest to the training set, then those around the median distance.
    """
    order = np.argsort(found.first, kind="stable")
    middle = max(0, (len(order) - SHOWN) // 2)
    rows = []
    for some in (order[:SHOWN], order[middle : middle + SHOWN]):
        rows += [synthetic.images[some], train.images[found.rows[some]]]
    columns = len(rows[0])
    return png_bytes(image_grid(np.concatenate(rows).transpose(0, 2, 3, 1), columns))
