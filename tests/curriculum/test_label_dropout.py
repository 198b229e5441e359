"""A dropped label is drawn for a unit and a draw, and becomes the null class."""

from pathlib import Path

import numpy as np
import torch

from curriculumdp.curriculum.batch import draw_batch
from curriculumdp.curriculum.initial import untrained_state
from curriculumdp.curriculum.release import EMBEDDING, classes_of, weights_of
from tests.support.runs import tiny

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


def test_the_null_class_leaves_only_where_dp_sgd_trained_it():
    """Stock diffusers draws from all classes of a release if it is given none."""
    for changes, rows in (
        ({}, 10),
        ({"private__label_dropout": 0.1}, 11),
        ({"private__label_dropout": 0.1, "warmup__label_dropout": 0.0}, 11),
        ({"curriculum": ["central", "warmup"], "private__label_dropout": 0.1}, 10),
        ({"warmup__label_dropout": 0.0}, 10),
    ):
        config = tiny(Path("unused"), **changes)
        state = untrained_state(config, CPU)
        kept = weights_of(config, state)[EMBEDDING]
        assert len(kept) == classes_of(config) == rows
        assert torch.equal(kept, state.net.get_parameter(EMBEDDING)[:rows])
