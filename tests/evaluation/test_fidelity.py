"""Fréchet and kernel distances and manifolds agree with hand-made cases, and see what digits lack."""

import numpy as np
import pytest
import torch

from curriculumdp.evaluation.fidelity import (
    FeatureNetwork,
    fidelity,
    frechet_distance,
    kernel_distance,
    precision_recall,
    train_features,
)
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet

CPU = torch.device("cpu")


@pytest.fixture
def features() -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.normal(size=(200, 6)) @ draw.normal(size=(6, 6))


def test_a_set_has_no_distance_to_itself(features: np.ndarray) -> None:
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_that_of_the_two_gaussians(features: np.ndarray) -> None:
    # b = 2a + 3: means differ by μ + 3, and tr(Σ + 4Σ − 2·2Σ) = tr Σ.
    expected = ((features.mean(0) + 3) ** 2).sum() + np.trace(np.cov(features, rowvar=False))
    assert frechet_distance(features, 2 * features + 3) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_sees_correlations_that_differ(features: np.ndarray) -> None:
    draw = np.random.default_rng(1)
    apart = np.stack([draw.permutation(column) for column in features.T], axis=1)
    a, b = frechet_distance(features, apart), frechet_distance(apart, features)
    assert a > 0.5
    assert a == pytest.approx(b, rel=1e-6)


def test_frechet_distance_of_few_images_is_the_one_of_many_features() -> None:
    """No more images than features: another formula, which must not be another distance."""
    draw = np.random.default_rng(6)
    a, b = draw.normal(size=(9, 12)), 2 * draw.normal(size=(12, 12)) + 1
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_the_unbiased_estimate_by_hand() -> None:
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(5, 3)), draw.normal(size=(4, 3)) + 1

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-9)


def test_kernel_distance_is_not_biased_by_few_images() -> None:
    draw = np.random.default_rng(3)
    found = [kernel_distance(*draw.normal(size=(2, 30, 4))) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))


def test_a_lost_mode_costs_recall_and_an_invented_one_precision() -> None:
    draw = np.random.default_rng(4)
    one, two = draw.normal(size=(2, 200, 3)) + np.array([[[0.0]], [[100.0]]])
    again = draw.normal(size=(200, 3))
    precision, recall = precision_recall(np.concatenate([one[:100], two[:100]]), again)
    assert precision > 0.85
    assert recall == pytest.approx(0.5, abs=0.08)
    precision, recall = precision_recall(again, np.concatenate([one[:100], two[:100]]))
    assert precision == pytest.approx(0.5, abs=0.08)
    assert recall > 0.85


def test_a_set_lies_on_its_own_manifold(features: np.ndarray) -> None:
    assert precision_recall(features, features, seed=0) == (1.0, 1.0)


def test_a_missing_class_raises_the_distance_and_lowers_recall(
    network: FeatureNetwork, train_digits: LabelledSet, test_digits: LabelledSet
) -> None:
    fresh = train_digits.take(np.arange(700, 1400))
    whole = fidelity(network, test_digits, fresh)
    without = fidelity(network, test_digits, fresh.take(np.flatnonzero(fresh.labels != 4)))
    assert without["fd"] > 1.5 * whole["fd"]
    assert without["kid"] > whole["kid"]
    assert without["recall"] < whole["recall"]


def test_noise_on_images_raises_the_distance(
    network: FeatureNetwork, train_digits: LabelledSet, test_digits: LabelledSet
) -> None:
    fresh = train_digits.take(np.arange(700, 1400))
    noise = np.random.default_rng(5).normal(0, 60, fresh.images.shape)
    noisy = LabelledSet((fresh.images + noise).clip(0, 255).astype(np.uint8), fresh.labels, "noisy")
    assert fidelity(network, test_digits, noisy)["fd"] > 1.5 * fidelity(network, test_digits, fresh)["fd"]


@pytest.mark.usefixtures("quick")
def test_a_feature_network_is_known_by_its_hash(train_digits: LabelledSet) -> None:
    some = train_digits.at_most(60)
    first, again, other = (train_features(some, CPU, seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256
    assert np.array_equal(first.features(some.images), again.features(some.images))
    assert np.square(first.features(some.images)).mean() == pytest.approx(1)


def test_the_halves_of_a_set_share_no_image_and_never_change(test_digits: LabelledSet) -> None:
    places = LabelledSet(test_digits.images, np.arange(len(test_digits)), "places")
    learned, compared = places.halves()
    assert sorted([*learned.labels, *compared.labels]) == list(range(360))
    assert learned.sha256() == places.halves()[0].sha256()


def test_too_few_images_are_refused(network: FeatureNetwork, test_digits: LabelledSet) -> None:
    few = test_digits.take(np.arange(5))
    with pytest.raises(EvaluationError, match="at least 10 images on either side"):
        fidelity(network, test_digits, few)
    with pytest.raises(EvaluationError, match="a feature network needs at least 10 images"):
        train_features(few, CPU)
