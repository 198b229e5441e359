"""Copies of training images are found, fresh images are not taken for copies."""

import numpy as np
import pytest

from curriculumdp.evaluation.labelled import LabelledSet
from curriculumdp.evaluation.memorisation import memorisation, nearest_neighbours


def test_neighbours_are_the_nearest_by_exhaustive_search(
    train_digits: LabelledSet, test_digits: LabelledSet
) -> None:
    found = nearest_neighbours(test_digits.at_most(40), train_digits)
    queries, stored = test_digits.at_most(40).pixels(), train_digits.pixels()
    every = np.sqrt(((queries[:, None].astype(float) - stored[None]) ** 2).mean(-1))
    assert np.array_equal(found.rows, every.argmin(1))
    assert found.first == pytest.approx(np.sort(every, 1)[:, 0], abs=1e-6)
    assert found.second == pytest.approx(np.sort(every, 1)[:, 1], abs=1e-6)


def test_copies_are_found(train_digits: LabelledSet, test_digits: LabelledSet) -> None:
    copies = train_digits.take(np.arange(0, 100))
    held_out = nearest_neighbours(test_digits, train_digits)
    found = memorisation(nearest_neighbours(copies, train_digits), held_out)
    assert found["nearer"] == 1
    assert found["synthetic"]["identical"] == 100
    assert found["synthetic"]["copies"] == 1
    assert found["synthetic"]["below"] == 1
    assert found["held_out"]["identical"] == 0


def test_copies_with_a_little_noise_are_found(train_digits: LabelledSet, test_digits: LabelledSet) -> None:
    some = train_digits.take(np.arange(0, 100))
    noise = np.random.default_rng(0).integers(-8, 9, some.images.shape)
    near = LabelledSet((some.images.astype(int) + noise).clip(0, 255).astype(np.uint8), some.labels, "near")
    held_out = nearest_neighbours(test_digits, train_digits)
    found = memorisation(nearest_neighbours(near, train_digits), held_out)
    assert found["synthetic"]["identical"] == 0
    assert found["synthetic"]["copies"] > 0.9
    assert found["nearer"] > 0.99


def test_fresh_images_look_like_held_out_ones(train_digits: LabelledSet, test_digits: LabelledSet) -> None:
    one, two = test_digits.halves()
    found = memorisation(nearest_neighbours(one, train_digits), nearest_neighbours(two, train_digits))
    assert found["nearer"] == pytest.approx(0.5, abs=0.08)
    assert found["synthetic"]["copies"] < 0.02


def test_ties_count_half() -> None:
    image = LabelledSet(np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.int64), "black")
    same = nearest_neighbours(image, image)
    assert memorisation(same, same)["nearer"] == 0.5
