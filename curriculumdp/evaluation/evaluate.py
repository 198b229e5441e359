"""An evaluation of a release: utility, fidelity and, where the training set is given, memorisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from curriculumdp.diffusion.pictures import image_grid
from curriculumdp.evaluation.fidelity import MIN_IMAGES, FeatureNetwork, fidelities, fidelity, train_features
from curriculumdp.evaluation.inception import given_inception
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet
from curriculumdp.evaluation.memorisation import Neighbours, memorisation, nearest_neighbours
from curriculumdp.evaluation.overlap import training_images, training_set_of
from curriculumdp.evaluation.record import DISTANCES, NEIGHBOURS, UTILITY, write_record
from curriculumdp.evaluation.released import Released, draw_images, load_set
from curriculumdp.evaluation.request import Request
from curriculumdp.evaluation.utility import DESCRIPTIONS, all_over_seeds, majority, over_seeds, scores
from curriculumdp.plots import distances_plot, png_bytes, utility_plot

__all__ = ["Request", "evaluate_release"]

SHOWN = 10  # pairs per row of neighbours.png


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
    _require_possible(request)
    real = load_set(request.real, released, "test", request.csv)
    train = None if request.train is None else load_set(request.train, released, "train", request.train_csv)
    network = None if request.inception is None else given_inception(request.inception, request.device)
    _require_enough(released, request, real, train)
    trained = [some for some in (training_set_of(released, say), train) if some is not None]
    own = training_images(real, trained, request.allow_training_images, say) if trained else {}
    material = _gather(released, request, real, network, say)
    metrics = _against_real(released, request, material, say)
    pictures: dict[str, bytes] = {}
    if train is not None:
        found, pictures = _against_training(released, request, material, train, say)
        own |= found
    if metrics["utility"]:
        pictures[UTILITY] = utility_plot(metrics["utility"])
    public, private = (metrics, own) if request.figures_are_public else ({}, {**metrics, **own})
    write_record(out, release=released.identity(), public=public, private=private, pictures=pictures)
    return public, private


def _require_possible(request: Request) -> None:
    """Raise EvaluationError for a request that no set of images could serve."""
    if min(request.count, request.seeds) < 1:
        raise EvaluationError("the numbers of images and seeds must both be at least 1")
    if request.inception is not None and request.features is not None:
        raise EvaluationError(
            "Inception weights are given, so no feature network is trained: do not name a set for one"
        )


def _require_enough(
    released: Released, request: Request, real: LabelledSet, train: LabelledSet | None
) -> None:
    """Raise EvaluationError if a set is too small, before anything is sampled or trained."""
    least = max(MIN_IMAGES, min(released.classes, 2))
    if request.count < least:
        raise EvaluationError(f"--num is {request.count}: fidelity needs at least {least} synthetic images")
    halved = request.inception is None and request.features is None
    for some, needed in ((real, least * (1 + halved)), (train, least)):
        if some is not None and len(some) < needed:
            raise EvaluationError(f"{some.origin}: has {len(some)} images: fidelity needs at least {needed}")
    if train is not None and released.classes > 1 and len(np.unique(train.labels)) < 2:
        raise EvaluationError(
            f"{train.origin}: has images of one class only: the release has {released.classes}"
        )


def _gather(
    released: Released,
    request: Request,
    real: LabelledSet,
    network: FeatureNetwork | None,
    say: Callable[[str], None],
) -> Material:
    """Load or sample all sets. The feature network is not trained on any image that is compared."""
    compared = real
    if network is None:
        say("training the feature network")
        if request.features is not None:
            learned = load_set(request.features, released, "train")
        else:
            learned, compared = real.halves()
            learned = replace(learned, origin=f"one half of: {real.origin}")
        network = train_features(learned, request.device)
    synthetic = []
    for seed in range(request.seeds):
        say(f"sampling {request.count} images, seed {seed}")
        synthetic.append(draw_images(released, request.count, seed, request.device, say))
    return Material(synthetic, real, compared, network)


def _against_real(
    released: Released, request: Request, material: Material, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return utility (nothing with a single class) and fidelity. As private as the real set."""
    real, synthetic = material.real, material.synthetic
    sets = synthetic if released.classes > 1 else []
    utility = {}
    for name in request.classifiers if sets else ():
        found = _scores(request, name, sets, real, released.class_names, "synthetic images", say)
        utility[name] = {**found, "classifier": DESCRIPTIONS[name]}
    say("comparing features")
    measured = fidelities(material.network, material.compared, synthetic)
    return {
        "real": {
            "origin": real.origin,
            "images": len(real),
            "sha256": real.sha256(),
            "majority": majority(real),
            **({"training_images_allowed": True} if request.allow_training_images else {}),
        },
        "synthetic": {"images": request.count, "seeds": request.seeds, "quick": request.quick},
        "utility": utility,
        "fidelity": {
            "network": material.network.facts(),
            "compared_with": len(material.compared),
            **{measure: over_seeds([row[measure] for row in measured]) for measure in measured[0]},
        },
    }


def _scores(
    request: Request,
    name: str,
    sets: Sequence[LabelledSet],
    real: LabelledSet,
    class_names: Sequence[str],
    what: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the scores on `real` of one classifier, trained on each of `sets` under its own seed."""
    found = []
    for seed, some in enumerate(sets):
        say(f"training {name} on {what}, {seed + 1} of {len(sets)}")
        found.append(scores(name, some, real, seed, request.device))
    return all_over_seeds(found, class_names)


def _against_training(
    released: Released,
    request: Request,
    material: Material,
    train: LabelledSet,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the training set's own scores and its nearness to the synthetic images, and plots. PRIVATE."""
    synthetic, network = material.synthetic[0], material.network
    say("comparing with the training set (private)")
    near, held_out = nearest_neighbours(synthetic, train), nearest_neighbours(material.real, train)
    sets = [train] * request.seeds
    utility = {
        name: _scores(request, name, sets, material.real, released.class_names, "real ones (private)", say)
        for name in (request.classifiers if released.classes > 1 else ())
    }
    some = train.at_most(request.count)
    metrics = {
        "reference": {
            "images": len(train),
            "utility": utility,
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
