"""One evaluation of a release: utility, fidelity and, where the training set is given, memorisation."""

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

SHOWN = 10  # pairs in a row of neighbours.png


@dataclass(frozen=True)
class Request:
    """What to evaluate a release with. Sets are named as for `load_set`; the training set is PRIVATE.

    features: a PUBLIC labelled set to train the feature network on; None for one half of the real set, the
    other half being compared with. inception: a file of PUBLIC Inception weights to compare in instead, with the whole
    real set. public_real: everybody may know the real set, and what comes of it.
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
        return self.public_real or self.real == "digits"  # which comes in scikit-learn's package

    @property
    def figures_are_public(self) -> bool:
        """Not where the feature network, through which all is compared, learns from the training set."""
        return self.real_is_public and (self.features is None or self.features != self.train)


@dataclass(frozen=True)
class Material:
    """An evaluation's images: `synthetic`, one set a seed; `compared`, the part of `real` for fidelity."""

    synthetic: Sequence[LabelledSet]
    real: LabelledSet
    compared: LabelledSet
    network: FeatureNetwork


def evaluate_release(
    released: Released, request: Request, place: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(public figures, private figures), each {} if there are none; written under `place` as `record` says.

    Raises EvaluationError, DataError, SamplingError, one line.
    """
    if released.classes < 2:
        raise EvaluationError("a model of one class: utility and the in-domain network need two classes")
    if min(request.count, request.seeds) < 1:
        raise EvaluationError("ask for at least one image and one seed")
    if request.inception is not None and request.features is not None:
        raise EvaluationError(
            "Inception weights are given: no feature network is trained, so name no set for one"
        )
    real = load_set(request.real, released, "test")
    train = None if request.train is None else load_set(request.train, released, "train")
    material = _gather(released, request, real, say)
    shared = _against_real(request, material, say)
    own: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    if train is not None:
        say("comparing with the training set (private)")
        own, pictures = _against_training(request, material, train)
    pictures[UTILITY] = utility_plot(shared["utility"])
    public, private = (shared, own) if request.figures_are_public else ({}, {**shared, **own})
    write_record(place, release=released.identity(), public=public, private=private, pictures=pictures)
    return public, private


def _gather(released: Released, request: Request, real: LabelledSet, say: Callable[[str], None]) -> Material:
    """The feature network has seen none of the images that are compared."""
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
        say(f"drawing {request.count} images, seed {seed}")
        synthetic.append(draw_images(released, request.count, seed, request.device))
    return Material(synthetic, real, compared, network)


def _against_real(request: Request, material: Material, say: Callable[[str], None]) -> dict[str, Any]:
    """As private as the real set."""
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
    """PRIVATE: what the training set itself would score, and how near to it the synthetic images lie."""
    synthetic, network = material.synthetic[0], material.network
    near, held_out = nearest_neighbours(synthetic, train), nearest_neighbours(material.real, train)
    scores = {
        name: over_seeds(
            [accuracy(name, train, material.real, seed, request.device) for seed in range(request.seeds)]
        )
        for name in request.classifiers
    }
    some = train.at_most(request.count)
    figures = {
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
    return figures, pictures


def neighbour_picture(synthetic: LabelledSet, train: LabelledSet, found: Neighbours) -> bytes:
    """PRIVATE, PNG: the synthetic images nearest to the training set over their neighbours; typical ones."""
    order = np.argsort(found.first, kind="stable")
    middle = max(0, (len(order) - SHOWN) // 2)
    rows = []
    for some in (order[:SHOWN], order[middle : middle + SHOWN]):
        rows += [synthetic.images[some], train.images[found.rows[some]]]
    columns = len(rows[0])
    return png_bytes(image_grid(np.concatenate(rows).transpose(0, 2, 3, 1), columns))
