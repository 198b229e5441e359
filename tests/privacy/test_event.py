"""An event that no accountant can take is refused where it is made."""

import dataclasses
import json
import math
from typing import Any

import pytest

from curriculumdp.privacy.event import AccountingError, PrivacyEvent, as_typed, rounded_up

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
        PrivacyEvent(**{**GOOD, field: value})
    assert "\n" not in str(refusal.value)


def test_a_gaussian_takes_everybody() -> None:
    with pytest.raises(AccountingError, match="sample_rate"):
        PrivacyEvent("central", "gaussian", 0.5, 2.0, 1)
    assert PrivacyEvent("central", "gaussian", 1, 2.0, 1).sample_rate == 1


def test_a_release_cannot_change_and_survives_json() -> None:
    event: Any = PrivacyEvent(**GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.count = 4
    assert PrivacyEvent(**json.loads(json.dumps(dataclasses.asdict(event)))) == event


def test_the_error_is_one_that_a_launcher_shows_as_bad_input() -> None:
    assert issubclass(AccountingError, ValueError)
    assert AccountingError.__module__.startswith("curriculumdp")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        *(
            (1.0000049, 6, "1.00001"),
            (1.0, 6, "1"),
            (6.0, 6, "6"),
            (0.1, 6, "0.1"),
            (0.3, 3, "0.3"),
            (0.0, 6, "0"),
        ),
        *((1e-5, 6, "1e-05"), (1.00000001e-5, 6, "1.00001e-05"), (9.9999999, 6, "10"), (2.9961, 3, "3")),
        *((3.0001, 3, "3.01"), (123456.1, 6, "123457"), (1234567.0, 6, "1.23457e+06"), (7, 6, "7")),
        (999999.5, 6, "1e+06"),
    ],
)
def test_a_figure_is_never_printed_below_its_value(value: float, digits: int, text: str) -> None:
    assert rounded_up(value, digits) == text
    assert float(text) >= value


def test_any_figure_is_printed_at_most_one_unit_of_the_last_digit_above() -> None:
    for place in range(1, 2000):
        for value in (place / 997, place * 1e-9 / 7, math.exp(place / 100), 1 + place * 1e-9):
            for digits in (3, 5, 6):
                assert value <= float(rounded_up(value, digits)) <= value * (1 + 10.0 ** (1 - digits))


@pytest.mark.parametrize("text", ["1", "0.1", "1.0000049", "1e-05", "0.0001", "10", "2.5"])
def test_a_setting_is_printed_as_it_was_typed(text: str) -> None:
    assert as_typed(float(text)) == text
