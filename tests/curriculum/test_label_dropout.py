"""A dropped label is drawn for a unit and a draw, and becomes the null class."""

import numpy as np
import torch

from curriculumdp.curriculum.batch import draw_batch

UNITS, NULL, KEY, CPU = torch.arange(200), 10, bytes(32), torch.device("cpu")


def labels(digits, units: torch.Tensor, dropout: float) -> torch.Tensor:
    return draw_batch(digits, units, 2, KEY, 0, CPU, dropout, NULL).labels


def test_the_share_of_draws_that_the_config_names_gets_the_null_class(digits):
    real = torch.from_numpy(np.repeat(digits.labels[:200], 2))
    assert torch.equal(labels(digits, UNITS, 0.0), real)
    some = labels(digits, UNITS, 0.25)
    dropped = some == NULL
    assert torch.equal(some[~dropped], real[~dropped])
    assert 60 <= int(dropped.sum()) <= 140  # of 400, under a fixed key


def test_whose_label_is_dropped_does_not_depend_on_the_batch(digits):
    turned = labels(digits, UNITS.flip(0), 0.25).unflatten(0, (-1, 2)).flip(0).flatten()
    assert torch.equal(labels(digits, UNITS, 0.25), turned)
