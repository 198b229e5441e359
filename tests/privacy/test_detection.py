"""Detection rates are rounded so that they never promise too much."""

from itertools import pairwise

import pytest

from curriculumdp.privacy.detection import at_most, detection_bound
from curriculumdp.privacy.event import PrivacyEvent


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.0, "0.0%"),
        (0.1301, "13.1%"),
        (0.13, "13.0%"),
        (0.9985, "99.9%"),
        (0.9991, "nearly all"),
        (1.0, "nearly all"),
    ],
)
def test_a_rate_is_rounded_up(rate: float, text: str) -> None:
    assert at_most(rate) == text


def test_more_noise_means_less_detection_and_never_less_than_guessing() -> None:
    alarms = (0.001, 0.01, 0.1)
    found = [
        detection_bound([PrivacyEvent("private", "subsampled_gaussian", 0.1, sigma, 20)], 4.0, alarms)
        for sigma in (1.0, 2.0, 8.0)
    ]
    for less_noise, more_noise in pairwise(found):
        assert all(a > b for a, b in zip(less_noise, more_noise, strict=True))
    assert all(rate >= alarm for rate, alarm in zip(found[-1], alarms, strict=True))
