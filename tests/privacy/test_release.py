"""A release that no accountant can take is refused where it is made."""

import dataclasses
import json
import math
from typing import Any

import pytest

from curriculumdp.privacy.release import AccountingError, Release

GOOD: dict[str, Any] = {
    "name": "private",
    "mechanism": "subsampled_gaussian",
    "sample_rate": 0.1,
    "noise_multiplier": 2.0,
    "count": 5,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("mechanism", "laplace"),
        ("sample_rate", 0.0),
        ("sample_rate", -0.1),
        ("sample_rate", 1.0000001),
        ("sample_rate", math.nan),
        ("sample_rate", "0.1"),
        ("sample_rate", True),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", 0.0999),
        ("noise_multiplier", 1e7),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", None),
        ("count", -1),
        ("count", 2.0),
        ("count", True),
        ("count", 10**6 + 1),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line_that_names_it(field: str, value: object) -> None:
    with pytest.raises(AccountingError, match=field) as refusal:
        Release(**{**GOOD, field: value})
    assert "\n" not in str(refusal.value)


def test_a_gaussian_takes_everybody() -> None:
    with pytest.raises(AccountingError, match="sample_rate"):
        Release("central", "gaussian", 0.5, 2.0, 1)
    assert Release("central", "gaussian", 1, 2.0, 1).sample_rate == 1


def test_a_release_cannot_change_and_survives_json() -> None:
    release: Any = Release(**GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        release.count = 4
    assert Release(**json.loads(json.dumps(dataclasses.asdict(release)))) == release


def test_the_error_is_one_that_a_launcher_shows_as_bad_input() -> None:
    assert issubclass(AccountingError, ValueError)
    assert AccountingError.__module__.startswith("curriculumdp")
