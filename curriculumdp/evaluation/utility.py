"""Utility: classifiers trained on synthetic images alone and tested on real ones."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from curriculumdp.evaluation.classifiers import SMALL, WIDE, Recipe, SmallCNN, WideResNet, fit, outputs_of
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet

Predict = Callable[[LabelledSet, LabelledSet, int, torch.device], np.ndarray]


def _logistic(train: LabelledSet, test: LabelledSet, seed: int, device: torch.device) -> np.ndarray:
    return _sklearn(LogisticRegression(max_iter=1000, random_state=seed), train, test)


def _mlp(train: LabelledSet, test: LabelledSet, seed: int, device: torch.device) -> np.ndarray:
    return _sklearn(MLPClassifier((128,), max_iter=200, random_state=seed), train, test)


def _sklearn(model: Any, train: LabelledSet, test: LabelledSet) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterate serves as well
        model.fit(train.pixels(), train.labels)
    return np.asarray(model.predict(test.pixels()))


def _network(make: Callable[[int, int, int], torch.nn.Module], recipe: Recipe) -> Predict:
    def predict(train: LabelledSet, test: LabelledSet, seed: int, device: torch.device) -> np.ndarray:
        classes = 1 + int(max(train.labels.max(), test.labels.max()))
        _, channels, size, _ = train.images.shape
        net = fit(lambda: make(channels, classes, size), train, recipe, seed, device)
        return np.asarray(outputs_of(net, test.images, device).argmax(1))

    return predict


# Pixels are in [0, 1] for the first two, in [−1, 1] for the networks.
CLASSIFIERS: dict[str, Predict] = {
    "logistic": _logistic,
    "mlp": _mlp,
    "cnn": _network(SmallCNN, SMALL),
    "wrn": _network(lambda channels, classes, _: WideResNet(channels, classes), WIDE),
}
DESCRIPTIONS = {
    "logistic": "scikit-learn's LogisticRegression(max_iter=1000), pixels in [0, 1]",
    "mlp": "scikit-learn's MLPClassifier, one hidden layer of 128, pixels in [0, 1]",
    "cnn": "two 3x3 convolutions (32, 64) with batch norm, 64 hidden units, Adam",
    "wrn": "WRN-40-4, SGD",
}


def chosen_classifiers(text: str | None, device: torch.device) -> tuple[str, ...]:
    """Return the classifiers of a comma-separated list; by default those that `device` trains in minutes."""
    if text is None:
        return tuple(name for name in CLASSIFIERS if name != "wrn" or device.type == "cuda")
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in CLASSIFIERS]
    if unknown:
        raise EvaluationError(f"no classifier {unknown[0]!r}: choose from {', '.join(CLASSIFIERS)}")
    return names


@dataclass(frozen=True)
class Scores:
    """How a classifier does on a test set. per_class: each class's share of right answers, None for an absent class.

    balanced: the mean of `per_class`, which a classifier that always answers the commonest class does not raise.
    """

    accuracy: float
    balanced: float
    per_class: tuple[float | None, ...]


def scores(
    name: str, train: LabelledSet, test: LabelledSet, seed: int, device: torch.device | None = None
) -> Scores:
    """Train a classifier on `train` and return its scores on `test`. As private as the two sets."""
    if len(np.unique(train.labels)) < 2:
        raise EvaluationError("utility needs images of at least two classes: this set has labels of only one")
    right = CLASSIFIERS[name](train, test, seed, device or torch.device("cpu")) == test.labels
    classes = range(1 + int(max(train.labels.max(), test.labels.max())))
    per_class = [right[test.labels == label] for label in classes]
    shares = tuple(float(some.mean()) if len(some) else None for some in per_class)
    present = [share for share in shares if share is not None]
    return Scores(float(right.mean()), float(np.mean(present)), shares)


def accuracy(
    name: str, train: LabelledSet, test: LabelledSet, seed: int, device: torch.device | None = None
) -> float:
    """Return the fraction of `test` that a classifier trained on `train` gets right. As private as the two sets."""
    return scores(name, train, test, seed, device).accuracy


def majority(test: LabelledSet) -> float:
    """Return the accuracy of always answering the commonest class of `test`. As private as `test`."""
    return float(np.bincount(test.labels).max() / len(test))


def all_over_seeds(found: Sequence[Scores], class_names: Sequence[str]) -> dict[str, Any]:
    """Return `over_seeds` of the accuracies, with `balanced` and each class's mean by name, None if it is absent."""
    per_class: dict[str, float | None] = {}
    for label, name in enumerate(class_names):
        shares = [one.per_class[label] for one in found if label < len(one.per_class)]
        known = [share for share in shares if share is not None]
        per_class[name] = float(np.mean(known)) if known else None
    return {
        **over_seeds([one.accuracy for one in found]),
        "balanced": over_seeds([one.balanced for one in found]),
        "per_class": per_class,
    }


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return the values, their mean and their spread (standard deviation; None for a single value)."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"values": [float(value) for value in values], "mean": float(np.mean(values)), "spread": spread}
