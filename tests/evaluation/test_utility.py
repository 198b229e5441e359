"""Classifiers score what the published ones do, and only what they were given to learn from."""

import numpy as np
import pytest
import torch

from curriculumdp.evaluation import utility
from curriculumdp.evaluation.classifiers import SmallCNN, WideResNet, fit
from curriculumdp.evaluation.labelled import EvaluationError, LabelledSet
from curriculumdp.evaluation.utility import accuracy, chosen_classifiers, over_seeds
from tests.support.evaluated_run import QUICK

CPU = torch.device("cpu")


def test_logistic_regression_on_the_real_digits_scores_as_known(
    train_digits: LabelledSet, test_digits: LabelledSet
) -> None:
    assert accuracy("logistic", train_digits, test_digits, 0) == pytest.approx(0.964, abs=0.005)


def test_labels_that_say_nothing_teach_nothing(train_digits: LabelledSet, test_digits: LabelledSet) -> None:
    some = train_digits.at_most(400)
    shuffled = LabelledSet(some.images, np.random.default_rng(0).permutation(some.labels), "shuffled")
    assert accuracy("mlp", shuffled, test_digits, 0) < 0.3


def test_the_small_network_learns_digits(train_digits: LabelledSet, test_digits: LabelledSet) -> None:
    quick = utility._network(SmallCNN, QUICK)
    predicted = quick(train_digits, test_digits, 0, CPU)
    assert (predicted == test_digits.labels).mean() > 0.75


def test_training_repeats_under_its_seed_and_leaves_the_global_generator(train_digits: LabelledSet) -> None:
    some = train_digits.at_most(64)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    nets = [fit(lambda: SmallCNN(1, 10, 8), some, QUICK, seed, CPU) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_class_that_the_synthetic_set_lacks_counts_as_wrong(
    train_digits: LabelledSet, test_digits: LabelledSet
) -> None:
    without = train_digits.take(np.flatnonzero(train_digits.labels < 9)).at_most(400)
    assert utility._network(SmallCNN, QUICK)(without, test_digits, 0, CPU).max() < 9


def test_wrn_40_4_is_the_published_network() -> None:
    # 8,972,340 parameters with 100 classes (Zagoruyko and Komodakis' tables say 8.9 M); 90 · 257 fewer with 10.
    assert sum(p.numel() for p in WideResNet(3, 10).parameters()) == 8_972_340 - 90 * 257
    small = WideResNet(1, 3, depth=10, width=1).eval()
    assert small(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


def test_wrn_is_for_machines_with_a_gpu_unless_asked_for() -> None:
    assert chosen_classifiers(None, CPU) == ("logistic", "mlp", "cnn")
    assert chosen_classifiers(None, torch.device("cuda"))[-1] == "wrn"
    assert chosen_classifiers("wrn, mlp", CPU) == ("wrn", "mlp")
    with pytest.raises(EvaluationError, match="no classifier 'tree': choose from logistic, mlp, cnn, wrn"):
        chosen_classifiers("mlp,tree", CPU)


def test_one_class_is_refused(train_digits: LabelledSet, test_digits: LabelledSet) -> None:
    with pytest.raises(EvaluationError, match="two classes"):
        accuracy("logistic", train_digits.take(np.flatnonzero(train_digits.labels == 1)), test_digits, 0)


def test_the_spread_is_the_sample_deviation_and_none_for_one_seed() -> None:
    assert over_seeds([0.8, 0.9, 1.0]) == {
        "values": [0.8, 0.9, 1.0],
        "mean": pytest.approx(0.9),
        "spread": pytest.approx(0.1),
    }
    assert over_seeds([0.8])["spread"] is None
